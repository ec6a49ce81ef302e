"""The drawn catalogue: the same for a seed, whole or not there, and a catalogue like any other."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.catalog.sample.catalog import SampleConfig, _looks, draw_sample
from tasks.catalog.sample.drawing import paint_product, shopper_photo
from tasks.catalog.snapshot import photo_table, product_table, take_snapshot


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    config = SampleConfig(products=6, photos_per_product=2)
    first = draw_sample(config, tmp_path / "a")
    draw_sample(config, tmp_path / "b")
    assert (first.products, first.photos) == (6, 12)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name
    snapshot = take_snapshot(str(tmp_path / "a"), str(tmp_path / "snapshots"), "one")
    assert set(photo_table(snapshot.uri)["split"].to_pylist()) == {"train", "val", "test"}
    assert all(product_table(snapshot.uri)["title"].to_pylist())


def test_products_have_as_many_pictures_as_were_asked_for(tmp_path: Path) -> None:
    config = SampleConfig(products=12, photos_per_product=1, most_pictures=4)
    draw_sample(config, tmp_path / "a")
    taken = take_snapshot(str(tmp_path / "a"), str(tmp_path / "snapshots"), "one")
    lists = product_table(taken.uri)["images"].to_pylist()
    assert {len(images) for images in lists} == {0, 1, 2, 3}
    files = [(tmp_path / "a" / uri).read_bytes() for images in lists for uri in images]
    assert len(set(files)) == len(files) == taken.further_pictures
    draw_sample(SampleConfig(products=12, photos_per_product=1), tmp_path / "b")
    assert not (tmp_path / "b" / "images.csv").exists()
    for name in ("products.csv", "photos.csv", "images/p00003.jpg", "photos/p00003-0.jpg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), "all else stays as it was"


def test_a_killed_drawing_is_done_again_and_a_whole_one_kept(tmp_path: Path) -> None:
    config = SampleConfig(products=2, photos_per_product=1)
    draw_sample(config, tmp_path)
    picture = tmp_path / "images" / "p00000.jpg"
    original = picture.read_bytes()
    picture.write_bytes(b"kept")
    draw_sample(config, tmp_path)
    assert picture.read_bytes() == b"kept"
    (tmp_path / "sample.json").unlink()
    draw_sample(config, tmp_path)
    assert picture.read_bytes() == original


def test_every_kind_is_drawn_and_products_differ() -> None:
    looks = list(_looks(SampleConfig(products=400)))
    assert len({(x.kind, x.colour, x.second, x.accent, x.pattern, x.a, x.b) for x in looks}) == 400
    for look in looks[:18]:
        alpha = np.asarray(paint_product(look).getchannel("A"))
        assert 0.05 < (alpha > 0).mean() < 0.9


def test_two_photos_of_a_product_differ() -> None:
    product = paint_product(next(_looks(SampleConfig(products=1))))
    photos = [shopper_photo(product, np.random.default_rng(n)) for n in range(2)]
    assert photos[0] != photos[1]
    assert Image.open(io.BytesIO(photos[0])).size == (224, 224)
