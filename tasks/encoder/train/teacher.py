"""Trains the teacher: an open_clip model with photo-product pairs and product texts as positives."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.augment import augment
from tasks.encoder.data.batches import training_batches
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.data.pixels import Decoding
from tasks.encoder.data.text_tokens import TokenBatches
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.interpolation import interpolate, kept_out, pretrained_state
from tasks.encoder.train.loop import Curve, MetricLog, optimise
from tasks.encoder.train.losses import pair_loss, text_loss
from tasks.encoder.train.origin import weights_origin
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.tower_store import find_trained, save_tower, training_key
from tasks.encoder.train.towers import Teacher, build_teacher, training_precision


class BothTowers(nn.Module):
    """Pictures and texts of a step in one forward, as DDP requires: unit vectors of each, and the text scale."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pictures: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        images = self.teacher.image(pictures)
        return (images, None, None) if tokens is None else (images, self.teacher.text(tokens), self.teacher.scale())


def train_teacher(
    snapshot_uri: str,
    config: EncoderConfig,
    work: Path,
    log: MetricLog,
    decoding: Decoding | None = None,
    checkpoints: str = "",
) -> TrainedTower:
    """Trains the teacher on a snapshot's train photos; with 0 steps it is kept as it starts. All output lies below `work`.

    Without train photos it learns from views of the catalogue's own pictures: each several times in a batch, augmented otherwise.

    Killed and called again it goes on from its last checkpoint, which lies below `checkpoints` (a folder of the store) or, where that
    is empty, below `work`; a finished training is returned as it is. Called by every
    process of a torchrun, they train it together (tasks/encoder/train/distributed.py). Raises TrainingError (nothing to train
    on, missing weights, a loss that is not a number, a damaged checkpoint).
    """
    training = read_training_set(snapshot_uri, config.photo_days)
    key = training_key(training, config, "teacher")
    folder = work / "teacher" / key
    done = find_trained(folder, key)
    if done is not None:
        return done
    recipe, replicas = config.teacher_recipe, ProcessGroup()
    where = replicas.device
    teacher = build_teacher(config).to(where)
    origin = weights_origin(config)
    if replicas.first:
        teacher.write_architecture(folder, config.preprocess.size)
    if not recipe.steps:
        return save_tower(folder, "teacher", key, teacher.model, Curve(), "fp32", replicas, origin)
    precision = training_precision(config.precision, where)
    words = TokenBatches(training, teacher.tokenizer(), config.seed)
    start = pretrained_state(teacher, config)
    interpolated = recipe.interpolate and bool(start)
    towers = replicas.wrap(BothTowers(teacher))
    with training_batches(
        training, config, recipe, work, decoding or Decoding(), replicas, kept_out(training) if interpolated else None
    ) as batches:

        def losses(number: int) -> dict[str, Tensor]:
            batch = batches(number)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            size = recipe.size_at(number // recipe.accumulate, config.preprocess.size)
            pixels = torch.from_numpy(batch.pixels).to(where)
            pictures = augment(pixels, size, recipe.augmentation, generator, batch.first, len(batch.products))
            products, named = torch.from_numpy(batch.products).to(where), np.unique(batch.products)
            tokens = words(named, number)[replicas.local_slice(len(named))].to(where) if config.text_weight else None
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
                own_images, own_texts, scale = towers(pictures, tokens)
                images = replicas.all_gather(own_images, len(named), recipe.pictures)
                pair = pair_loss(images, products, config.pair_temperature)
                if own_texts is None:
                    return {"loss": pair}
                texts = replicas.all_gather(own_texts, len(named))
                text = text_loss(images, texts, products, torch.from_numpy(named).to(where), scale)
            return {"loss": pair + config.text_weight * text, "pair_loss": pair, "text_loss": text}

        images = batches.count * recipe.pictures * recipe.accumulate
        _, curve = optimise(
            "teacher", teacher.model, losses, recipe, key, images, checkpoints or folder / "steps", log, replicas, start
        )
    with replicas.main_process_first():
        chosen = interpolate(teacher, start, training, config, work) if interpolated else None
    return save_tower(folder, "teacher", key, teacher.model, curve, precision, replicas, origin, chosen)
