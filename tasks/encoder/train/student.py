"""Distils the student into the teacher's embedding space, so that its queries can search the teacher's documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tasks.encoder.config import TEACHER, EncoderConfig, Precision
from tasks.encoder.data.augment import Augmentation, augment, to_float
from tasks.encoder.data.batches import BalancedBatches, Batch, Batches, training_batches
from tasks.encoder.data.photos import TrainingSet, read_training_set
from tasks.encoder.data.pixels import Decoding, cached_pixels, decode_some
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.loop import Curve, MetricLog, optimise
from tasks.encoder.train.losses import cosine_loss, imitation_loss, pair_loss, search_loss
from tasks.encoder.train.taught_views import JITTER, TaughtViews
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.tower_store import find_trained, restore_teacher, save_tower, training_key
from tasks.encoder.train.towers import build_student, training_precision
from tasks.errors import TrainingError

DOCUMENTS = 4096
"""The most documents a student's batch is compared with; a larger catalogue gives those of the batch's products only."""
BATCH = 64


class Documents(Protocol):
    """The teacher's vectors of catalogue pictures that a batch is compared with."""

    def vectors_for(self, products: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (m, d), and for each of `products` (n,) the row of its own; -1 where its picture is unreadable."""
        ...


class WholeCatalogue:
    """All of a small catalogue except unseen products, encoded once."""

    def __init__(self, teacher: nn.Module, training: TrainingSet, config: EncoderConfig, work: Path, where: torch.device) -> None:
        found = cached_pixels(training.image_uris, training.root, config.preprocess, work / "pixels", "document", 1.0)
        rows = np.flatnonzero(found.usable & ~training.unseen)
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                parts.append(teacher(to_float(torch.from_numpy(found.array[rows[start : start + BATCH]]).to(where))))
        self.vectors = torch.cat(parts)
        place = np.full(len(found.usable), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self.place = torch.from_numpy(place).to(where)

    def vectors_for(self, products: Tensor) -> tuple[Tensor, Tensor]:
        return self.vectors, self.place[products]


class BatchCatalogue:
    """For large catalogues: the pictures of the batch's own products, encoded per batch."""

    def __init__(self, teacher: nn.Module, training: TrainingSet, config: EncoderConfig, where: torch.device) -> None:
        self.teacher, self.training, self.spec, self.where = teacher, training, config.preprocess, where

    def vectors_for(self, products: Tensor) -> tuple[Tensor, Tensor]:
        named = np.unique(products.cpu().numpy())
        pixels, usable = decode_some([self.training.image_uris[p] for p in named], self.training.root, self.spec)
        with torch.no_grad():
            vectors = self.teacher(to_float(torch.from_numpy(pixels[usable]).to(self.where)))
        place = torch.from_numpy(np.where(usable, np.cumsum(usable) - 1, -1)).to(self.where)
        return vectors, place[torch.searchsorted(torch.from_numpy(named).to(self.where), products)]


def distil_student(
    snapshot_uri: str,
    teacher: TrainedTower,
    config: EncoderConfig,
    work: Path,
    log: MetricLog,
    decoding: Decoding | None = None,
    checkpoints: str = "",
) -> TrainedTower:
    """Trains the student on the same photos: alpha * task + (1 - alpha) * KL + cosine_weight * (1 - cosine).

    Labels are not needed: without train photos it learns from views of the catalogue's own pictures. Teacher and student see the
    same augmented pictures. The student's similarities are those to the teacher's vectors of the batch and of the catalogue's
    pictures: what its queries will search. Resumes, repeats and shares its work like `train_teacher`; raises TrainingError.
    """
    training = read_training_set(snapshot_uri, config.photo_days)
    key = training_key(training, config, "student")
    folder = work / "student" / key
    done = find_trained(folder, key)
    if done is not None:
        return done
    recipe, replicas = config.student_recipe, ProcessGroup()
    where = replicas.device
    if not recipe.steps:
        return save_tower(folder, "student", key, build_student(config), Curve(), "fp32", replicas)
    precision = training_precision(config.precision, where)
    image_teacher = restore_teacher(teacher, config).to(where).image
    documents = _documents(image_teacher, training, config, work, replicas)
    student = build_student(config).to(where)
    if config.student.pretrained == TEACHER:
        inherit(student, image_teacher)
    spread = replicas.wrap(student)
    with training_batches(training, config, recipe, work, decoding or Decoding(), replicas) as batches:
        lesson = _lessons(batches, config, image_teacher, precision, folder, replicas)

        def losses(number: int) -> dict[str, Tensor]:
            pictures, own_target, products = lesson(number)
            shown = len(products) // recipe.pictures
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
                target = replicas.all_gather(own_target, shown, recipe.pictures)
                found = replicas.all_gather(spread(pictures), shown, recipe.pictures)
                beside, places = documents.vectors_for(products)
                task = pair_loss(found, products, config.pair_temperature)
                task = (task + search_loss(found, beside, places, config.pair_temperature)) / 2
                kl = imitation_loss(found, target, torch.cat([target, beside]), config.kl_temperature)
                cosine = cosine_loss(found, target)
            loss = config.alpha * task + (1 - config.alpha) * kl + config.cosine_weight * cosine
            return {"loss": loss, "task_loss": task, "kl": kl, "cosine_loss": cosine}

        images = batches.count * recipe.pictures * recipe.accumulate
        _, curve = optimise("student", student, losses, recipe, key, images, checkpoints or folder / "steps", log, replicas)
    return save_tower(folder, "student", key, student, curve, precision, replicas)


def _lessons(
    batches: Batches, config: EncoderConfig, teacher: nn.Module, precision: Precision, folder: Path, replicas: ProcessGroup
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """By batch number this process's pictures (m, 3, s, s), the teacher's vectors of them (m, d), and the products (n,) of all.

    With the recipe's `views` the teacher has seen all pictures before the first step; where they are too many to be kept decoded,
    it sees them step by step, as without.
    """
    recipe, where = config.student_recipe, replicas.device

    def changed(batch: Batch, size: int, how: Augmentation, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(config.seed * 2_000_003 + number)
        pictures = augment(torch.from_numpy(batch.pixels).to(where), size, how, generator, batch.first, len(batch.products))
        return pictures, torch.from_numpy(batch.products).to(where)

    def live(number: int) -> tuple[Tensor, Tensor, Tensor]:
        size = recipe.size_at(number // recipe.accumulate, config.preprocess.size)
        pictures, products = changed(batches(number), size, recipe.augmentation, number)
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            return pictures, teacher(pictures), products

    if not recipe.views or not isinstance(batches, BalancedBatches):
        return live
    with replicas.main_process_first():
        views = TaughtViews(folder / "views", batches, config, teacher, where)

    def taught(number: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, vectors = views(number)
        pictures, products = changed(batch, views.side, JITTER, number)
        return pictures, torch.from_numpy(vectors).to(where), products

    return taught


def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Copies those of the teacher's tensors into the student that it has, too, by name and shape. Raises TrainingError for none."""
    own = student.state_dict()
    shared = {name: tensor for name, tensor in teacher.state_dict().items() if name in own and own[name].shape == tensor.shape}
    if not any(name.startswith("tower.") for name in shared):
        raise TrainingError(
            "the student has no layer of its teacher's; set student.pretrained to '', or name a part of its network"
        )
    student.load_state_dict(shared, strict=False)


def _documents(teacher: nn.Module, training: TrainingSet, config: EncoderConfig, work: Path, replicas: ProcessGroup) -> Documents:
    if len(training.image_uris) > DOCUMENTS:
        return BatchCatalogue(teacher, training, config, replicas.device)
    with replicas.main_process_first():
        return WholeCatalogue(teacher, training, config, work, replicas.device)
