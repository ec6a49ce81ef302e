"""A trained tower on disk, and the record passed between steps."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from serving.contract.files import Frozen
from tasks.encoder.data.photos import TrainingSet
from tasks.encoder.presets import EncoderConfig, Precision
from tasks.encoder.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.loop import Curve
from tasks.encoder.train.towers import Teacher, build_student, build_teacher, parameters
from tasks.errors import TrainingError

FORMAT = 3
"""Raised whenever the code gives another encoder for the same config and data: old training is then not reused."""


class TrainedTower(Frozen):
    """Reference to a trained tower: location of its weights and cost of its training."""

    tower: str
    folder: str
    key: str
    steps: int
    parameters: int
    final_loss: float
    seconds: float
    cpu_seconds: float
    images_per_s: float
    peak_memory_bytes: int
    precision: Precision


def recipe_key(config: EncoderConfig, content_sha256: str) -> str:
    """Hash of a training's input: with equal keys (data and recipe) a training need not be repeated."""
    text = json.dumps({"format": FORMAT, "data": content_sha256, "config": config.as_dict()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_key(training: TrainingSet, config: EncoderConfig, tower: str) -> str:
    return f"{tower}-{recipe_key(config, training.content_sha256)}"


def save_tower(
    folder: Path, tower: str, key: str, module: nn.Module, curve: Curve, precision: Precision, replicas: ProcessGroup
) -> TrainedTower:
    """Writes final weights and the loss curve; of several processes the main one writes, the others wait."""
    record = TrainedTower(
        tower=tower,
        folder=str(folder),
        key=key,
        steps=len(curve.loss),
        parameters=parameters(module),
        final_loss=sum(curve.loss[-10:]) / len(curve.loss[-10:]),
        seconds=curve.seconds,
        cpu_seconds=curve.cpu_seconds,
        images_per_s=curve.images_per_s,
        peak_memory_bytes=curve.peak_memory_bytes,
        precision=precision,
    )
    values: dict[str, Any] = {"record": record.model_dump(), "loss": list(curve.loss)}
    if replicas.first:
        save_checkpoint(folder, dict(module.state_dict()), values)
    replicas.wait()
    return record


def find_trained(folder: Path, key: str) -> TrainedTower | None:
    """The tower trained before with this key, or None."""
    found = load_checkpoint(folder)
    if found is None or found.values["record"]["key"] != key:
        return None
    return TrainedTower(**found.values["record"])


def load_tower(trained: TrainedTower) -> Checkpoint:
    """Weights and curve of a trained tower. Raises TrainingError when missing or damaged."""
    found = load_checkpoint(Path(trained.folder))
    if found is None:
        raise TrainingError(f"the trained {trained.tower} is not in {trained.folder}; run its training step again")
    return found


def restore_teacher(trained: TrainedTower, config: EncoderConfig) -> Teacher:
    """The trained teacher, in evaluation mode."""
    teacher = build_teacher(config, load_pretrained=False)
    teacher.model.load_state_dict(load_tower(trained).tensors)
    return teacher.eval()


def restore_student(trained: TrainedTower, config: EncoderConfig) -> nn.Module:
    """The trained student, in evaluation mode."""
    student = build_student(config, load_pretrained=False)
    student.load_state_dict(load_tower(trained).tensors)
    return student.eval()
