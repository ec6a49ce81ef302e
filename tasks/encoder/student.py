"""Distilling the student into the teacher's own space, so that its queries may search the teacher's documents."""

from pathlib import Path

import torch
from torch import Tensor

from tasks.encoder.augment import augment
from tasks.encoder.batches import training_batches
from tasks.encoder.loop import MetricLog, optimise
from tasks.encoder.losses import cosine_loss, imitation_loss, pair_loss
from tasks.encoder.photos import read_training_set
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.towers import build_student, device
from tasks.encoder.trained import TrainedTower, finished, restore_teacher, save_tower, training_key


def distil_student(snapshot_uri: str, teacher: TrainedTower, config: EncoderConfig, work: Path, log: MetricLog) -> TrainedTower:
    """Trains the student on the same photos: alpha * task + (1 - alpha) * KL + cosine_weight * (1 - cosine).

    Teacher and student see the same augmented pictures. Resumes and repeats like `train_teacher`; raises TrainingError.
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
    student = build_student(config).to(where)

    def losses(number: int) -> dict[str, Tensor]:
        batch = batches(number)
        generator = torch.Generator().manual_seed(config.seed * 2_000_003 + number)
        pixels = torch.from_numpy(batch.pixels).to(where)
        products = torch.from_numpy(batch.products).to(where)
        pictures = augment(pixels, config.preprocess.size, recipe.augmentation, generator)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
            with torch.no_grad():
                target = image_teacher(pictures)
            found = student(pictures)
            task = pair_loss(found, products, config.pair_temperature)
            kl = imitation_loss(found, target, config.kl_temperature)
            cosine = cosine_loss(found, target)
        loss = config.alpha * task + (1 - config.alpha) * kl + config.cosine_weight * cosine
        return {"loss": loss, "task_loss": task, "kl": kl, "cosine_loss": cosine}

    images = batches.count * recipe.pictures * recipe.accumulate
    _, curve = optimise("student", student, losses, recipe, key, images, folder / "steps", log)
    return save_tower(folder, "student", key, student, curve)
