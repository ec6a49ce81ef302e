"""A trained tower on disk or in the store."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from serving.contract.provenance import Origin
from tasks import storage
from tasks.encoder.config import EncoderConfig, Precision
from tasks.encoder.data.photos import TrainingSet
from tasks.encoder.train.checkpoint import RECORD, WEIGHTS, Checkpoint, read_checkpoint, save_checkpoint, store_checkpoint
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.loop import Curve
from tasks.encoder.train.tower_record import Interpolation, TrainedTower
from tasks.encoder.train.towers import ImageEncoder, Teacher, build_student, open_teacher, parameters
from tasks.errors import TrainingError

FORMAT = 5
"""Raised whenever the code gives another encoder for the same config and data: old training is then not reused."""


def recipe_key(config: EncoderConfig, content_sha256: str) -> str:
    """Hash of a training's input: with equal keys (data and recipe) a training need not be repeated.

    Where nothing is trained the data does not count. A tower's `sha256` counts where there is one: only local files have it.
    """
    values = config.as_dict()
    for tower in ("teacher", "student"):
        values[tower] = {k: v for k, v in values[tower].items() if k != "sha256" or v}
    data = content_sha256 if config.trains else ""
    text = json.dumps({"format": FORMAT, "data": data, "config": values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_key(training: TrainingSet, config: EncoderConfig, tower: str) -> str:
    return f"{tower}-{recipe_key(config, training.content_sha256)}"


def save_tower(
    folder: Path, tower: str, key: str, module: nn.Module, curve: Curve, precision: Precision, replicas: ProcessGroup,
    origin: Origin | None = None, interpolation: Interpolation | None = None,
) -> TrainedTower:  # fmt: skip
    """Writes final weights and the loss curve; of several processes the main one writes, the others wait."""
    record = TrainedTower(
        tower=tower,
        uri=str(folder),
        key=key,
        steps=len(curve.loss),
        parameters=parameters(module),
        final_loss=fmean(curve.loss[-10:]) if curve.loss else 0.0,
        seconds=curve.seconds,
        cpu_seconds=curve.cpu_seconds,
        images_per_s=curve.images_per_s,
        peak_memory_bytes=curve.peak_memory_bytes,
        precision=precision,
        origin=origin,
        interpolation=interpolation,
    )
    kept = {name: value for name, value in record.to_json().items() if name != "uri"}  # it lies where its weights lie
    values: dict[str, Any] = {"record": kept, "loss": list(curve.loss)}
    if replicas.first:
        save_checkpoint(folder, dict(module.state_dict()), values)
    replicas.wait()
    return record


def find_trained(uri: str | Path, key: str) -> TrainedTower | None:
    """The tower trained before with this key whose weights lie at the folder `uri`, or None."""
    found = _read(str(uri))
    if found is None or found.values["record"]["key"] != key:
        return None
    record = found.values["record"] | {"uri": str(uri)}
    record.pop("folder", None)  # what records before 2026-12 named their place
    return TrainedTower.from_json(record)


def store_tower(trained: TrainedTower, uri: str) -> TrainedTower:
    """Copies a tower's files from this machine to the folder `uri` of the store; returns its record there."""
    folder = storage.local_path(trained.uri)
    for path in sorted(folder.iterdir()):  # the teacher's architecture and tokenizer
        if path.is_file() and path.name not in (WEIGHTS, RECORD):
            storage.put_file(path, storage.join(uri, path.name))
    store_checkpoint(folder, uri)
    return replace(trained, uri=uri)


def load_tower(trained: TrainedTower) -> Checkpoint:
    """Weights and curve of a trained tower. Raises TrainingError when missing or damaged."""
    found = _read(trained.uri)
    if found is None:
        raise TrainingError(f"the trained {trained.tower} is not in {trained.uri}; run its training step again")
    return found


def _read(uri: str) -> Checkpoint | None:
    with tempfile.TemporaryDirectory() as folder:
        return read_checkpoint(uri, Path(folder))


def restore_teacher(trained: TrainedTower, config: EncoderConfig) -> Teacher:
    """The trained teacher, in evaluation mode, from its folder alone."""
    tensors = load_tower(trained).tensors
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in storage.list_files(trained.uri):
            if file.rpartition("/")[2] not in (WEIGHTS, RECORD):
                (folder / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
        teacher = open_teacher(folder, config)
    teacher.model.load_state_dict(tensors)
    return teacher.eval()


def restore_student(trained: TrainedTower, config: EncoderConfig) -> ImageEncoder:
    """The trained student, in evaluation mode."""
    student = build_student(config, load_pretrained=False)
    student.load_state_dict(load_tower(trained).tensors)
    return student.eval()
