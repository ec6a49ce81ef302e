"""The training set: splits that do not leak, pictures decoded once by the contract, and catalogues that cannot be trained on."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.preprocess import PreprocessSpec, decode
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.photos import cached_pixels, read_training_set
from tasks.errors import TrainingError
from tests.encoder.conftest import PRODUCTS, draw_catalogue

SPEC = PreprocessSpec(size=24)


def snapshot_of(folder: Path) -> Snapshot:
    return take_snapshot(str(folder), str(folder.parent / "snapshots"), "one")


def test_no_photo_is_in_two_splits_and_every_product_is_trained_on(snapshot: Snapshot) -> None:
    training = read_training_set(snapshot.uri)
    train, val = training.split("train"), training.split("val")
    assert not set(train.uris) & set(val.uris)
    assert len(train) == 2 * PRODUCTS
    assert len(val) == PRODUCTS
    assert sorted(train.products.tolist()) == sorted([*range(PRODUCTS), *range(PRODUCTS)])
    assert training.held_out() is val


def test_a_photo_in_two_splits_is_refused(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=3)
    with (folder / "photos.csv").open("a") as stream:
        stream.write("images/p000-photo0.jpg,p000,val\n")
    with pytest.raises(TrainingError, match=r"p000-photo0.jpg' is in the splits train and val"):
        read_training_set(snapshot_of(folder).uri)


def test_a_catalogue_without_training_photos_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=3)
    (folder / "photos.csv").write_text("photo,product_id,split\nimages/p000-photo0.jpg,p000,val\n")
    with pytest.raises(TrainingError, match="has no training photos; add rows with split=train"):
        read_training_set(snapshot_of(folder).uri)


def test_pictures_are_decoded_by_the_contract_and_once(snapshot: Snapshot, tmp_path: Path) -> None:
    training = read_training_set(snapshot.uri)
    pixels = cached_pixels(training.image_uris, training.root, SPEC, tmp_path, "product")
    for uri, found in zip(training.image_uris, pixels.array, strict=True):
        assert np.array_equal(found, decode((Path(training.root) / uri).read_bytes(), SPEC))
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = cached_pixels(training.image_uris, training.root, SPEC, tmp_path, "product")
    assert np.array_equal(again.array, pixels.array)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    cached_pixels(training.image_uris, training.root, PreprocessSpec(size=32), tmp_path, "product")
    assert len(list(tmp_path.iterdir())) == 2 * len(files)


def test_one_damaged_picture_is_left_out_and_many_are_an_error(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=6)
    (folder / "images" / "p002.png").write_bytes(b"not a picture")
    training = read_training_set(snapshot_of(folder).uri)
    pixels = cached_pixels(training.image_uris, training.root, SPEC, tmp_path / "cache", "product")
    assert pixels.usable.tolist() == [True, True, False, True, True, True]
    for name in ("p000", "p001"):
        (folder / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"3 of 6 product pictures cannot be read \(first: images/p000.png\)"):
        cached_pixels(training.image_uris, training.root, SPEC, tmp_path / "other", "product")
