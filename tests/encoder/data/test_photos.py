"""The training set: splits that do not leak, pictures decoded once by the contract, and catalogues that cannot be trained on."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.preprocess import PreprocessSpec, decode
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.catalog.splits import UNSEEN_SHARE, VAL_SHARE, is_unseen, photo_split
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.data.pixels import Decoding, cached_pixels, pixel_blocks, survey
from tasks.errors import TrainingError
from tests.encoder.conftest import PRODUCTS, draw_catalogue

SPEC = PreprocessSpec(size=24)


def snapshot_of(folder: Path) -> Snapshot:
    return take_snapshot(str(folder), str(folder.parent / "snapshots"), "one")


def test_no_photo_is_in_two_splits_and_no_unseen_product_is_trained_on(snapshot: Snapshot) -> None:
    training = read_training_set(snapshot.uri)
    splits = {name: set(training.split(name).uris) for name in ("train", "val", "test", "unseen")}
    assert sum(len(uris) for uris in splits.values()) == len(set().union(*splits.values())) == 3 * PRODUCTS
    assert len(splits["val"]) == PRODUCTS
    unseen = [i for i, product_id in enumerate(training.product_ids) if is_unseen(product_id)]
    assert 0 < len(unseen) < PRODUCTS
    assert np.flatnonzero(training.unseen).tolist() == unseen
    assert set(training.split("unseen").products.tolist()) == set(unseen)
    assert not set(training.split("train").products.tolist()) & set(unseen)
    assert training.held_out() is training.split("val")
    assert set(training.never_trained().uris) == splits["val"] | splits["test"] | splits["unseen"]


def test_what_one_run_holds_out_every_run_holds_out(snapshot: Snapshot, tmp_path: Path) -> None:
    before = read_training_set(snapshot.uri)
    grown = read_training_set(snapshot_of(draw_catalogue(tmp_path / "shop", products=3 * PRODUCTS)).uri)
    known = dict(zip(grown.product_ids, grown.unseen, strict=True))
    assert [known[p] for p in before.product_ids] == before.unseen.tolist()
    assert not set(before.never_trained().uris) & set(grown.split("train").uris)
    assert not set(grown.never_trained().uris) & set(before.split("train").uris)


def test_about_a_twentieth_of_the_products_is_unseen_and_a_tenth_of_unlabelled_photos_held_out() -> None:
    assert sum(is_unseen(f"product-{i}") for i in range(20_000)) == pytest.approx(20_000 * UNSEEN_SHARE, rel=0.1)
    assert sum(photo_split(f"photo-{i}.jpg") == "val" for i in range(20_000)) == pytest.approx(20_000 * VAL_SHARE, rel=0.1)


def test_a_catalogue_that_says_no_split_gets_one_by_the_photos_names(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=40)
    photos = folder / "photos.csv"
    photos.write_text("\n".join(line.rpartition(",")[0] for line in photos.read_text().splitlines()))
    training = read_training_set(snapshot_of(folder).uri)
    assert 0 < len(training.split("val")) < 30
    assert all(photo_split(uri) == "val" for uri in training.split("val").uris)
    assert not any(photo_split(uri) == "val" for uri in training.split("train").uris)


def test_a_window_leaves_out_old_train_photos_and_never_a_held_out_one(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=9)
    photos = folder / "photos.csv"
    header, *lines = photos.read_text().splitlines()
    dated = [f"{line},2026-03-{1 + i:02d}" for i, line in enumerate(lines)]
    photos.write_text("\n".join([f"{header},taken_at", *dated]) + "\n")
    found = snapshot_of(folder)
    whole, recent = read_training_set(found.uri), read_training_set(found.uri, photo_days=7)
    assert recent.split("val").uris == whole.split("val").uris
    assert recent.split("unseen").uris == tuple(u for u in whole.split("unseen").uris if u in recent.split("unseen").uris)
    newest = {line.split(",")[0] for line in lines[-8:]}
    assert set(recent.split("train").uris) == set(whole.split("train").uris) & newest


def test_a_window_over_photos_without_dates_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(
        TrainingError, match=r"no photo has a date, so a window of 30 days means nothing; give photos.csv a column"
    ):
        read_training_set(snapshot.uri, photo_days=30)


def test_a_photo_in_two_splits_is_refused(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=3)
    with (folder / "photos.csv").open("a") as stream:
        stream.write("images/p000-photo0.jpg,p000,val\n")
    with pytest.raises(TrainingError, match=r"p000-photo0.jpg' is in the splits train and val"):
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
    with pytest.raises(
        TrainingError,
        match=r"3 of 6 product pictures cannot be read, allowed 20 %: VITRINE_MAX_UNREADABLE \(first: images/p000.png\)",
    ):
        cached_pixels(training.image_uris, training.root, SPEC, tmp_path / "other", "product")


def test_what_is_kept_and_what_is_decoded_in_passing_are_the_same_pictures(snapshot: Snapshot, tmp_path: Path) -> None:
    training = read_training_set(snapshot.uri)
    uris = (*training.image_uris, "images/none.png")
    kept = cached_pixels(uris, training.root, SPEC, tmp_path / "kept", "product")
    seen = survey(uris, training.root, SPEC, tmp_path / "passing", "product")
    assert np.array_equal(seen.usable, kept.usable)
    assert np.array_equal(seen.digests, kept.digests)
    assert kept.usable.tolist() == [True] * PRODUCTS + [False]
    for size in (0, 1 << 30):
        decoding = Decoding(cache_bytes=size)
        blocks = list(pixel_blocks(uris, training.root, SPEC, tmp_path / str(size), "product", decoding))
        assert np.array_equal(np.concatenate([b[0] for b in blocks])[:PRODUCTS], kept.array[:PRODUCTS])
        assert np.array_equal(np.concatenate([b[1] for b in blocks]), kept.usable)
    assert not list((tmp_path / "passing").glob("*.npy.tmp"))
    assert sum(f.stat().st_size for f in (tmp_path / "passing").iterdir()) < 1000
