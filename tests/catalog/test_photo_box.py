"""The box of a labelled photo: read from four columns, carried by the address, cut out wherever the photo is read."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.contract.box import Box
from serving.contract.image_limits import DEFAULT_LIMITS, ImageRejected
from serving.contract.preprocess import PreprocessSpec, decode
from tasks.catalog.photo_box import box_of, cut_out, split_box, with_box
from tasks.catalog.snapshot import photo_table, take_snapshot
from tasks.embed.images import read_image
from tasks.encoder.data.photos import read_training_set
from tasks.errors import CatalogError, TrainingError
from tests.catalogs import read_table, small_catalog, write_table

BOX = Box(x=0.25, y=0.5, width=0.5, height=0.25)


def row(x: object = 0.25, y: object = 0.5, width: object = 0.5, height: object = 0.25) -> dict[str, object]:
    return {"box_x": x, "box_y": y, "box_width": width, "box_height": height}


def test_a_box_goes_into_the_address_and_comes_out_of_it() -> None:
    assert box_of(row()) == box_of({k: str(v) for k, v in row().items()}) == BOX
    assert with_box("photos/a.jpg", BOX) == "photos/a.jpg#xywh=percent:25,50,50,25"
    for box in (BOX, Box(x=1 / 3, y=0.1, width=2 / 3, height=0.123456789), Box(x=1e-7, y=0, width=1, height=0.5)):
        address, found = split_box(with_box("s3://b/a.jpg", box))
        assert address == "s3://b/a.jpg"
        assert found is not None
        np.testing.assert_allclose(list(found.model_dump().values()), list(box.model_dump().values()), atol=1e-9)
    for address in ("photos/a.jpg", "a#1.jpg", "a.jpg#xywh=percent:0,0,200,10", "a.jpg#xywh=percent:1,2"):
        assert split_box(address) == (address, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (row("", "", None, ""), None),
        ({}, None),
        (row(0, 0, 1, 1), None),
        (row(y=""), "box_y missing: a box needs box_x, box_y, box_width, box_height, or none of them"),
        (row(x=40), "box_x 40, box_y 0.5, box_width 0.5, box_height 0.25: give shares"),
        (row(x="left"), "box_x left"),
        (row(width=0.9), "reaches over the photo's right edge"),
    ],
)
def test_what_a_row_states(given: dict[str, object], expected: str | None) -> None:
    if expected is None:
        assert box_of(given) is None
        return
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        box_of(given)


def test_the_box_is_of_the_upright_photo(tmp_path: Path) -> None:
    upright = np.zeros((80, 40, 3), np.uint8)
    upright[40:60, 10:30] = (250, 20, 20)
    lying = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = np.asarray(Image.open(io.BytesIO(read_image(with_box("a.jpg", BOX), str(tmp_path)))))
    assert found.shape == (20, 20, 3)
    assert np.abs(found[5:15, 5:15].astype(int).mean(axis=(0, 1)) - (250, 20, 20)).max() < 5
    whole = decode((tmp_path / "a.jpg").read_bytes(), PreprocessSpec(size=16), box=BOX)
    assert np.abs(whole[4:12, 4:12].astype(int) - (250, 20, 20)).max() < 12
    with pytest.raises(ImageRejected):
        cut_out(b"no picture", BOX, DEFAULT_LIMITS)


def test_photos_are_asked_and_trained_on_by_their_boxes(tmp_path: Path) -> None:
    folder = small_catalog(tmp_path / "shop", photos=2)
    photos = read_table(folder / "photos.csv")
    write_table(folder / "photos.csv", [p | (row() if n % 2 else row("", "", "", "")) for n, p in enumerate(photos)])
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    uris = photo_table(snapshot.uri)["photo_uri"].to_pylist()
    assert sum("#xywh" in uri for uri in uris) == len(photos) // 2
    boxed = next(uri for uri in uris if "#xywh" in uri)
    whole = Image.open(io.BytesIO(read_image(split_box(boxed)[0], snapshot.image_root))).size
    cut = Image.open(io.BytesIO(read_image(boxed, snapshot.image_root))).size
    assert cut == (round(whole[0] / 2), round(whole[1] / 4))
    training = read_training_set(snapshot.uri)
    assert {*training.split("train").uris, *training.never_trained().uris} == set(uris)


def test_a_box_that_is_none_stops_the_snapshot_by_its_row_and_one_photo_stays_in_one_split(tmp_path: Path) -> None:
    folder = small_catalog(tmp_path / "shop", photos=2)
    photos = read_table(folder / "photos.csv")
    write_table(folder / "photos.csv", [photos[0] | row(width=0.9), *({**p, **row("", "", "", "")} for p in photos[1:])])
    with pytest.raises(CatalogError, match=r"row 1, photo '.*': the box reaches over the photo's right edge"):
        take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    twice = [photos[0] | {"split": "train"} | row(), photos[0] | {"split": "val"} | row(x=0)]
    write_table(folder / "photos.csv", [*twice, *({**p, **row("", "", "", "")} for p in photos[1:])])
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "two")
    with pytest.raises(TrainingError, match="a photo may be in one only"):
        read_training_set(snapshot.uri)
