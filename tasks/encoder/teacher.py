"""Training the teacher: an open_clip model pulled together by photo-product pairs and by titles."""

from pathlib import Path

import open_clip
import torch
from torch import Tensor

from tasks.encoder.augment import augment
from tasks.encoder.batches import training_batches
from tasks.encoder.loop import MetricLog, optimise
from tasks.encoder.losses import pair_loss, text_loss
from tasks.encoder.photos import TrainingSet, read_training_set
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.towers import Teacher, build_teacher, device
from tasks.encoder.trained import TrainedTower, finished, save_tower, training_key


def train_teacher(snapshot_uri: str, config: EncoderConfig, work: Path, log: MetricLog) -> TrainedTower:
    """Trains the teacher on a snapshot's train photos; everything it writes lies below `work`.

    Killed and called again it goes on from its last checkpoint, and a finished training is returned as it is. Raises
    TrainingError (no training photos, missing weights, a loss that is not a number, a damaged checkpoint).
    """
    training = read_training_set(snapshot_uri)
    key = training_key(training, config, "teacher")
    folder = work / "teacher" / key
    done = finished(folder, key)
    if done is not None:
        return done
    recipe = config.teacher_recipe
    batches = training_batches(training, config, recipe, work)
    where = device()
    teacher = build_teacher(config).to(where)
    tokens = title_tokens(training, config, teacher).to(where)

    def losses(number: int) -> dict[str, Tensor]:
        batch = batches(number)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        pixels = torch.from_numpy(batch.pixels).to(where)
        products = torch.from_numpy(batch.products).to(where)
        size = recipe.size_at(number // recipe.accumulate, config.preprocess.size)
        pictures = augment(pixels, size, recipe.augmentation, generator)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
            images = teacher.image(pictures)
            pair = pair_loss(images, products, config.pair_temperature)
            if not config.text_weight:
                return {"loss": pair}
            named = torch.unique(products)
            texts = teacher.text(tokens[named])
            text = text_loss(images, texts, products, named, teacher.scale())
        return {"loss": pair + config.text_weight * text, "pair_loss": pair, "text_loss": text}

    images = batches.count * recipe.pictures * recipe.accumulate
    _, curve = optimise("teacher", teacher.model, losses, recipe, key, images, folder / "steps", log)
    return save_tower(folder, "teacher", key, teacher.model, curve)


def title_tokens(training: TrainingSet, config: EncoderConfig, teacher: Teacher) -> Tensor:
    """Tokens (products, context) int64 of the products' titles."""
    tokenizer = open_clip.get_tokenizer(config.teacher.open_clip) if config.teacher.open_clip else open_clip.SimpleTokenizer()
    return tokenizer(list(training.titles), context_length=teacher.context())
