"""Views whose vectors the teacher gives once: the student sees them at its own side, the teacher never again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.preprocess import PreprocessSpec
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.config import Recipe
from tasks.encoder.data.augment import Augmentation, to_float
from tasks.encoder.data.batches import BalancedBatches, BatchPlan
from tasks.encoder.data.pixels import Pixels
from tasks.encoder.presets import preset
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.taught_views import TaughtViews
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import load_tower

CPU = torch.device("cpu")


class MeanColour(nn.Module):
    """A teacher of three dimensions that counts what it is shown."""

    shown = 0

    def forward(self, pictures: Tensor) -> Tensor:
        self.shown += len(pictures)
        return pictures.mean(dim=(2, 3))


def grey(n: int, first: int) -> Pixels:
    array = np.arange(first, first + n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 12, 12, 3), np.uint8)
    return Pixels(array, np.ones(n, bool), np.ones((n, 32), np.uint8))


def test_the_teacher_sees_each_view_once_and_a_batch_holds_its_vectors_of_what_is_shown(tmp_path: Path) -> None:
    tiny, still = preset("tiny"), Augmentation(brightness=0.0, contrast=0.0, saturation=0.0, tint=0.0, erase=0.0)
    recipe = Recipe(steps=1, products=3, pictures=3, views=2, augmentation=still)
    config = replace(tiny, dim=3, preprocess=PreprocessSpec(size=8), student=replace(tiny.student, size=4), student_recipe=recipe)
    products, photos, teacher = grey(5, 10), grey(9, 100), MeanColour()
    usable = np.arange(9) != 7
    shown = np.arange(5) != 4
    plan = BatchPlan(shown, usable, np.arange(9) % 4, recipe, config.seed)
    batches = BalancedBatches(products, photos, plan, ProcessGroup())
    views = TaughtViews(tmp_path / "views", batches, config, teacher, CPU)
    assert teacher.shown == 2 * (4 + 8)
    for number in range(6):
        batch, vectors = views(number)
        plain = batches(number)
        assert batch.pixels.shape == (len(plain.pixels), 4, 4, 3)
        assert np.array_equal(batch.products, plain.products)
        assert np.abs(batch.pixels[:, 0, 0, 0].astype(int) - plain.pixels[:, 0, 0, 0]).max() <= 1
        np.testing.assert_allclose(vectors, to_float(torch.from_numpy(plain.pixels)).mean(dim=(2, 3)), atol=1e-5)
    again = TaughtViews(tmp_path / "views", batches, config, teacher, CPU)
    assert teacher.shown == 2 * (4 + 8)
    assert np.array_equal(again(3)[0].pixels, views(3)[0].pixels)


def test_a_student_is_distilled_from_views(snapshot: Snapshot, tmp_path: Path) -> None:
    tiny = preset("tiny")
    teacher = train_teacher(snapshot.uri, tiny, tmp_path, no_log)
    config = replace(tiny, student_recipe=replace(tiny.student_recipe, views=2))
    one, two, live = (
        load_tower(distil_student(snapshot.uri, teacher, chosen, tmp_path / name, no_log)).values["loss"]
        for name, chosen in (("one", config), ("two", config), ("live", tiny))
    )
    assert one == two
    assert one != live
