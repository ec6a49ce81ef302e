"""Distilling the student into the teacher's own space, so that its queries may search the teacher's documents."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.encoder.augment import augment, plain
from tasks.encoder.batches import training_batches
from tasks.encoder.loop import MetricLog, optimise
from tasks.encoder.losses import cosine_loss, imitation_loss, pair_loss, search_loss
from tasks.encoder.photos import TrainingSet, cached_pixels, read_training_set
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.towers import build_student, device
from tasks.encoder.trained import TrainedTower, finished, restore_teacher, save_tower, training_key

DOCUMENTS = 4096
"""The most documents a student's batch is compared with; a larger catalogue gives those of the batch's products only."""
BATCH = 64


class Catalogue:
    """The teacher's vectors of the catalogue's pictures, computed once."""

    def __init__(self, teacher: nn.Module, training: TrainingSet, config: EncoderConfig, work: Path) -> None:
        found = cached_pixels(training.image_uris, training.root, config.preprocess, work / "pixels", "document")
        rows = np.flatnonzero(found.usable)
        self.where = device()
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                pixels = torch.from_numpy(found.array[rows[start : start + BATCH]]).to(self.where)
                parts.append(teacher(plain(pixels)))
        self.vectors = torch.cat(parts)
        place = np.full(len(found.usable), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self.place = torch.from_numpy(place).to(self.where)

    def beside(self, products: Tensor) -> tuple[Tensor, Tensor]:
        """Document vectors (m, d), and for each of `products` (n,) the row of its own, -1 when its picture is unreadable."""
        places = self.place[products]
        if len(self.vectors) <= DOCUMENTS:
            return self.vectors, places
        used = torch.unique(places[places >= 0])
        moved = torch.searchsorted(used, places.clamp(min=0))
        return self.vectors[used], torch.where(places >= 0, moved, -1)


def distil_student(snapshot_uri: str, teacher: TrainedTower, config: EncoderConfig, work: Path, log: MetricLog) -> TrainedTower:
    """Trains the student on the same photos: alpha * task + (1 - alpha) * KL + cosine_weight * (1 - cosine).

    Teacher and student see the same augmented pictures. The student's similarities are those to the teacher's vectors of the
    batch and of the catalogue's pictures: what its queries will search. Resumes and repeats like `train_teacher`; raises
    TrainingError.
    """
    training = read_training_set(snapshot_uri)
    key = training_key(training, config, "student")
    folder = work / "student" / key
    done = finished(folder, key)
    if done is not None:
        return done
    recipe = config.student_recipe
    batches = training_batches(training, config, recipe, work)
    where = device()
    image_teacher = restore_teacher(teacher, config).to(where).image
    catalogue = Catalogue(image_teacher, training, config, work)
    student = build_student(config).to(where)

    def losses(number: int) -> dict[str, Tensor]:
        batch = batches(number)
        generator = torch.Generator().manual_seed(config.seed * 2_000_003 + number)
        pixels = torch.from_numpy(batch.pixels).to(where)
        products = torch.from_numpy(batch.products).to(where)
        size = recipe.size_at(number // recipe.accumulate, config.preprocess.size)
        pictures = augment(pixels, size, recipe.augmentation, generator)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
            with torch.no_grad():
                target = image_teacher(pictures)
            found = student(pictures)
            documents, places = catalogue.beside(products)
            task = pair_loss(found, products, config.pair_temperature)
            task = (task + search_loss(found, documents, places, config.pair_temperature)) / 2
            kl = imitation_loss(found, target, torch.cat([target, documents]), config.kl_temperature)
            cosine = cosine_loss(found, target)
        loss = config.alpha * task + (1 - config.alpha) * kl + config.cosine_weight * cosine
        return {"loss": loss, "task_loss": task, "kl": kl, "cosine_loss": cosine}

    images = batches.count * recipe.pictures * recipe.accumulate
    _, curve = optimise("student", student, losses, recipe, key, images, folder / "steps", log)
    return save_tower(folder, "student", key, student, curve)
