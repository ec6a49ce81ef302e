"""Class-balanced batches: several pictures of each product, every product equally often, the same at every call."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.contract.preprocess import PreprocessSpec
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.config import Recipe
from tasks.encoder.data.batches import BalancedBatches, BatchPlan, StreamedBatches, training_batches
from tasks.encoder.data.decoders import decode_many
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.data.pixels import Decoding, Pixels
from tasks.encoder.presets import preset
from tasks.encoder.train.distributed import ProcessGroup
from tasks.errors import TrainingError
from tasks.settings import PROJECT
from tests.catalogs import read_table, write_table
from tests.encoder.conftest import draw_catalogue
from tests.running import until


def pixels(n: int, first: int) -> Pixels:
    """Pictures whose every pixel is their own number."""
    array = np.arange(first, first + n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Pixels(array, np.ones(n, bool), np.ones((n, 32), np.uint8))


def drawn(pictures: Pixels, photos: Pixels, photo_products: list[int], how: Recipe, seed: int) -> BalancedBatches:
    plan = BatchPlan(pictures.usable, photos.usable, np.asarray(photo_products), how, seed)
    return BalancedBatches(pictures, photos, plan, ProcessGroup())


def batches(photo_products: list[int], products: int = 10, **recipe: int) -> BalancedBatches:
    how = Recipe(**({"steps": 1, "products": 4, "pictures": 3} | recipe))
    return drawn(pixels(products, 0), pixels(len(photo_products), 100), photo_products, how, seed=1)


def test_a_batch_holds_the_picture_and_photos_of_each_product() -> None:
    photo_products = [p for p in range(10) for _ in range(5)]
    batch = batches(photo_products)(0)
    assert batch.pixels.shape == (12, 2, 2, 3)
    assert sorted(Counter(batch.products.tolist()).values()) == [3, 3, 3, 3]
    for value, product in zip(batch.pixels[:, 0, 0, 0], batch.products, strict=True):
        assert (value if value < 100 else photo_products[value - 100]) == product
    assert sum(batch.pixels[:, 0, 0, 0] < 100) == 4


def test_every_product_comes_equally_often_however_many_photos_it_has() -> None:
    draw = batches([0] * 50 + [1])
    seen = Counter(int(p) for step in range(25) for p in set(draw(step).products.tolist()))
    assert set(seen) == set(range(10))
    assert max(seen.values()) - min(seen.values()) <= 2


def test_a_product_without_photos_shows_its_picture_and_one_with_few_repeats_them() -> None:
    draw = batches([0, 0], pictures=6)
    found = [(p, v) for step in range(5) for p, v in zip(draw(step).products, draw(step).pixels[:, 0, 0, 0], strict=True)]
    assert {int(v) for p, v in found if p == 3} == {3}
    assert {int(v) for p, v in found if p == 0} == {0, 100, 101}


def test_a_step_is_the_same_at_every_call_and_differs_from_the_next() -> None:
    draw = batches([p for p in range(10) for _ in range(5)])
    assert np.array_equal(draw(7).pixels, draw(7).pixels)
    assert not np.array_equal(draw(7).products, draw(8).products)


def test_unreadable_photos_are_never_drawn() -> None:
    photos = replace(pixels(4, 100), usable=np.asarray([True, False, False, True]))
    draw = drawn(pixels(2, 0), photos, [0, 0, 1, 1], Recipe(steps=1, products=2, pictures=4), seed=0)
    values = {int(v) for step in range(10) for v in draw(step).pixels[:, 0, 0, 0]}
    assert values == {0, 1, 100, 103}


def test_a_single_product_cannot_be_trained_on() -> None:
    with pytest.raises(TrainingError, match="at least two products"):
        batches([0, 0, 0], products=1)


def opened(snapshot: Snapshot, work: Path, decoding: Decoding) -> AbstractContextManager:
    config = preset("tiny")
    return training_batches(read_training_set(snapshot.uri), config, config.teacher_recipe, work, decoding, ProcessGroup())


def test_pictures_too_many_to_keep_are_decoded_by_workers_into_the_same_batches(snapshot: Snapshot, tmp_path: Path) -> None:
    with opened(snapshot, tmp_path / "kept", Decoding()) as kept, opened(snapshot, tmp_path / "s", Decoding(0, 2)) as streamed:
        assert isinstance(streamed, StreamedBatches)
        for number in (0, 1, 2, 7, 3):  # a resumed training starts anywhere
            one, other = kept(number), streamed(number)
            assert np.array_equal(one.pixels, other.pixels)
            assert np.array_equal(one.products, other.products)
        workers = [p.pid for p in multiprocessing.active_children()]
        assert len(workers) == 2
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert not list((tmp_path / "s").rglob("train-*[0-9a-f].npy"))


def test_a_killed_training_leaves_no_decoders_behind(snapshot: Snapshot, tmp_path: Path) -> None:
    code = (
        "import sys, time, multiprocessing\nfrom serving.contract.preprocess import PreprocessSpec\n"
        "from tasks.encoder.data.decoders import Decoders\n"
        "if __name__ == '__main__':\n"
        "    with Decoders(sys.argv[1], PreprocessSpec(size=24), 2) as d:\n"
        "        d(0, lambda step: [sys.argv[2]] * 8)\n"
        "        print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "        time.sleep(600)\n"
    )
    training = read_training_set(snapshot.uri)
    script = tmp_path / "decode.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script), training.root, training.image_uris[0]],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    until(lambda: not any(map(runs, workers)), "no decoder outlives its training")


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_copy_of_a_held_out_photo_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=4)
    (folder / "images" / "p000-photo0.jpg").write_bytes((folder / "images" / "p000-photo2.jpg").read_bytes())
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    training = read_training_set(snapshot.uri)
    with opened(snapshot, tmp_path / "work", Decoding()) as batches:
        assert isinstance(batches, BalancedBatches)
        drawn_rows = {int(row) for number in range(30) for row in batches.plan(number)[1].ravel()}
    assert {training.split("train").uris[row] for row in drawn_rows if row >= 0} == set(training.split("train").uris) - {
        "images/p000-photo0.jpg"
    }
    assert "1 training photos are copies of held-out photos" in caplog.text


def test_further_pictures_are_drawn_like_photos_where_they_are_wanted(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=4)
    rows = read_table(folder / "products.csv")
    held_out = "images/p001-photo2.jpg"
    for row in rows:
        further = [f"images/{row['product_id']}-side.jpg"] + ([held_out] if row["product_id"] == "p001" else [])
        (folder / further[0]).write_bytes((folder / f"images/{row['product_id']}-photo0.jpg").read_bytes() + b" ")
        row["images"] = json.dumps(further)
    write_table(folder / "products.csv", rows)
    training = read_training_set(take_snapshot(str(folder), str(tmp_path / "snapshots"), "one").uri)
    photos = training.split("train").uris
    assert set(training.further.uris) - {held_out} == {f"images/p00{n}-side.jpg" for n in range(4) if not training.unseen[n]}
    for wanted in (True, False):
        config = replace(preset("tiny"), further_pictures=wanted)
        with training_batches(training, config, config.teacher_recipe, tmp_path / "w", Decoding(), ProcessGroup()) as batches:
            assert isinstance(batches, BalancedBatches)
            rows_drawn = {int(row) for number in range(40) for row in batches.plan(number)[1].ravel()} - {-1}
        drawn_uris = {(photos + training.further.uris)[row] for row in rows_drawn}
        extra = set(training.further.uris) - {held_out} if wanted else set()
        assert drawn_uris == set(photos) | extra


def test_a_labelled_product_without_a_readable_picture_stops_a_training_by_name(tmp_path: Path) -> None:
    folder = draw_catalogue(tmp_path / "shop", products=20)
    for picture in (folder / "images").glob("p007*"):
        picture.write_bytes(b"damaged")
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    with (
        pytest.raises(
            TrainingError, match=r"1 of \d+ labelled products have no picture that can be read .*\(first: p007\); mend"
        ),
        opened(snapshot, tmp_path / "work", Decoding()),
    ):
        pass


def test_a_picture_that_is_lost_during_a_training_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(
        TrainingError, match=r"images/gone.jpg could be read before the training and cannot be now .*start it again"
    ):
        decode_many(["images/gone.jpg"], read_training_set(snapshot.uri).root, PreprocessSpec(size=24))
