"""Exports the towers of a version to an encoder folder: graphs from pixels or tokens to unit vectors."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, atomic_write, describe
from serving.contract.golden_outputs import TOLERANCES
from serving.contract.graph_check import IN_CHILD, Check
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.provenance import Training
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.photos import Photos, TrainingSet, read_training_set
from tasks.encoder.data.pixels import cached_pixels
from tasks.encoder.data.tokenizer import TOKENIZER, encode_texts, write_tokenizer
from tasks.encoder.evaluate.card import card
from tasks.encoder.evaluate.query_quality import query_quality
from tasks.encoder.evaluate.vectors import encode, open_onnx
from tasks.encoder.export.mlflow_flavor import write_flavor
from tasks.encoder.export.onnx_graph import OPSET, ImageGraph, data_file, write_half, write_onnx, write_torchscript
from tasks.encoder.export.quantize import LEAST_SHARE, quantize_graph
from tasks.encoder.export.runtimes import TorchScript
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.tower_store import load_tower, restore_student, restore_teacher
from tasks.encoder.train.towers import Teacher, parameters
from tasks.errors import TrainingError

CURVES = "training.json"
"""The loss of every step, by tower: for the report page."""
GOLDEN_PICTURES = 16
GOLDEN_TEXTS = 8
PARITY_PICTURES = 64
PARITY_LIMIT = 1e-4
"""Most that any coordinate of an fp32 graph may differ from PyTorch on real pictures; about 1e-6 is usual."""
CHECK_BATCH = 2
"""Inputs that a graph is run on in the child process that opens it first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Real inputs for golden outputs, parity and calibration."""

    pixels: np.ndarray
    tokens: np.ndarray | None
    """None for a version without a text tower."""

    def for_tower(self, name: str) -> np.ndarray:
        """The inputs that a tower's parity is measured on."""
        if not name.startswith("text"):
            return self.pixels[:PARITY_PICTURES]
        assert self.tokens is not None
        return self.tokens


@dataclass
class ExportState:
    """The files written so far: variants by "tower.variant", metrics, and decisions."""

    names: list[str] = field(default_factory=list)
    alone: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    query: str = ""


def export_encoder(
    snapshot_uri: str,
    teacher: TrainedTower,
    student: TrainedTower | None,
    config: EncoderConfig,
    work: Path,
    folder: Path,
    runtime: Runtime = ONNXRUNTIME,
    check: Check = IN_CHILD,
    int8_share: float = LEAST_SHARE,
) -> EncoderManifest:
    """Writes the encoder version into `folder` (encoder.json last but for card and MLmodel); returns its manifest.

    Roles: the teacher embeds documents; the student embeds queries, or the teacher where there is none, in int8 when that keeps the
    share `int8_share` of its recall and `runtime`, which is to serve, is no slower with it. Every graph is opened by `check`, in a
    child process, before it is opened here, and through the serving contract before the manifest is believed. fp16 is optional: where
    it fails, the version ships without it and its notes say why. Raises TrainingError when another graph does not agree with PyTorch,
    ContractError when one does not open.
    """
    training = read_training_set(snapshot_uri)
    full_teacher = restore_teacher(teacher, config)
    image_towers = {"teacher": full_teacher.image}
    trained = {"teacher": teacher}
    if student is not None:
        image_towers["student"], trained["student"] = restore_student(student, config), student
    samples = _samples(training, config, full_teacher, work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = config.preprocess.size
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    written = ExportState()
    for tower, module in image_towers.items():
        _write_tower(tower, ImageGraph(module), pixels, samples, folder, written, check)
        written.metrics[f"{tower}.parameters"] = float(parameters(module))
    if samples.tokens is not None:
        example = torch.from_numpy(samples.tokens[:2].copy())
        _write_tower("text", full_teacher.text, example, samples, folder, written, check)
        write_tokenizer(full_teacher.tokenizer(), folder / TOKENIZER)
    query = "student" if student is not None else "teacher"
    _write_int8(query, training, config, samples, work, folder, runtime, written, check, int8_share)
    curves = {name: load_tower(t).values["loss"] for name, t in trained.items() if t.steps}
    if curves:
        (folder / CURVES).write_text(json.dumps(curves))
    np.savez(folder / "golden.npz", **_golden(folder, written, samples))
    manifest = _manifest(folder, config, training, written, trained)
    with atomic_write(folder / "encoder.json") as path:
        path.write_text(manifest.to_json())
    check_folder(folder, runtime)
    write_flavor(folder, manifest)
    (folder / "card.md").write_text(card(manifest))
    return manifest


def check_folder(folder: Path, runtime: Runtime = ONNXRUNTIME) -> None:
    """Opens all files of an encoder folder in ONNX Runtime and PyTorch, and the query graphs in `runtime`.

    Raises ContractError naming the first file that is damaged, cannot be loaded, or does not give its golden outputs.
    """
    version = EncoderFolder(folder)
    for tower, variants in version.manifest.towers.items():
        for name, variant in variants.items():
            version.open(f"{tower}.{name}")
            if variant.torchscript is not None:
                version.open(f"{tower}.{name}", runtime=TorchScript())
    version.open(version.manifest.query, runtime=runtime)


def _write_tower(
    tower: str, module: nn.Module, example: Tensor, samples: Samples, folder: Path, written: ExportState, check: Check
) -> None:
    """fp32 in ONNX and TorchScript, and fp16 for image towers; each compared with PyTorch on real inputs."""
    full, script = folder / f"{tower}.fp32.onnx", folder / f"{tower}.pt"
    inputs = samples.for_tower(tower)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    write_onnx(module, example, full)
    write_torchscript(module, example, script)
    check(f"{tower}.fp32", full, ONNXRUNTIME, inputs[:CHECK_BATCH])
    check(f"{tower}.fp32", script, TorchScript(), inputs[:CHECK_BATCH])
    for name, found in (
        (f"{tower}.fp32", encode(full, inputs)),
        (f"{tower}.torchscript", TorchScript().open(script, "fp32", 2)(inputs)),
    ):
        difference, cosine = _compare(found, expected)
        if not difference <= PARITY_LIMIT:
            raise TrainingError(
                f"{name}: the exported graph differs from PyTorch by {difference:.2g} (allowed {PARITY_LIMIT:g}); it is not usable"
            )
        written.metrics |= {f"{name}.parity_max_difference": difference, f"{name}.parity_min_cosine": cosine}
    written.names.append(f"{tower}.fp32")
    if tower != "text":  # words are short: half precision would gain nothing
        _write_half(tower, full, inputs, expected, written, check)


def _write_half(tower: str, full: Path, inputs: np.ndarray, expected: np.ndarray, written: ExportState, check: Check) -> None:
    """fp16 beside the fp32 graph `full`, or a note why there is none."""
    name, least = f"{tower}.fp16", TOLERANCES["fp16"].min_cosine
    half = full.with_name(f"{name}.onnx")
    write_half(full, half)
    try:
        check(name, half, ONNXRUNTIME, inputs[:CHECK_BATCH])
        difference, cosine = _compare(encode(half, inputs), expected)
        written.metrics |= {f"{name}.half_max_difference": difference, f"{name}.half_min_cosine": cosine}
        if not cosine >= least:
            raise ContractError(f"its least cosine to PyTorch is {cosine:.5f}, at least {least} is asked")
    except ContractError as error:
        written.notes[name] = f"no fp16 is kept: {error}"
        log.warning("%s: %s", name, written.notes[name])
        half.unlink()
        data_file(half).unlink(missing_ok=True)
    else:
        written.names.append(name)


def _write_int8(
    tower: str, training: TrainingSet, config: EncoderConfig, samples: Samples, work: Path, folder: Path, runtime: Runtime,
    written: ExportState, check: Check, int8_share: float,
) -> None:  # fmt: skip
    """int8 of the tower that embeds queries, where it keeps recall; and which variant serves."""
    name, source = f"{tower}.int8", folder / f"{tower}.fp32.onnx"
    quality = query_quality(folder / "teacher.fp32.onnx", training, config, work)
    kept = work / "int8" / training.content_sha256[:16]
    choice, trials, fp32 = quantize_graph(
        source, folder / f"{name}.onnx", samples.pixels, quality, runtime, kept, check, int8_share
    )
    for trial in (fp32, *trials):
        prefix = f"{tower}.fp32" if trial is fp32 else f"{name}.{trial.method}"
        written.metrics |= {f"{prefix}.cosine": trial.cosine, f"{prefix}.ms": trial.ms}
        if trial.mrr is not None:
            written.metrics[f"{prefix}.mrr"] = trial.mrr
    written.metrics[f"{name}.kept"] = float(bool(choice.method))
    written.notes[name] = f"{choice.reason} ({runtime.name}, one picture, one thread)"
    written.query = name if choice.method and not choice.slower else f"{tower}.fp32"
    if choice.method:
        written.names.append(name)
    if choice.method == "dynamic":
        written.alone.add(name)


def _compare(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest coordinate difference, and smallest cosine."""
    return float(np.abs(actual - expected).max()), float((actual * expected).sum(axis=1).min())


def _samples(training: TrainingSet, config: EncoderConfig, teacher: Teacher, work: Path) -> Samples:
    """Pictures sampled from train photos and catalogue (never held-out photos), preprocessed as in serving; and titles."""
    train, some = training.split("train"), 256
    rows = np.unique(np.linspace(0, len(train) - 1, some).round().astype(int))[: len(train)]
    photos = Photos(tuple(train.uris[i] for i in rows), train.products[rows])
    products = np.unique(np.linspace(0, len(training.image_uris) - 1, some // 2).round().astype(int))
    uris = [*photos.uris, *(training.image_uris[i] for i in products)]
    found = cached_pixels(uris, training.root, config.preprocess, work / "pixels", "calibration", 1.0)
    pixels = np.array(found.array[found.usable])
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
    titles = training.titles[:: max(1, len(training.titles) // GOLDEN_TEXTS)][:GOLDEN_TEXTS]
    return Samples(pixels, encode_texts(teacher.tokenizer(), titles) if config.has_text else None)


def _golden(folder: Path, written: ExportState, samples: Samples) -> dict[str, Any]:
    """Inputs, and each variant's outputs in ONNX Runtime."""
    golden: dict[str, Any] = {"pixels": samples.pixels[:GOLDEN_PICTURES]}
    if samples.tokens is not None:
        golden["tokens"] = samples.tokens
    for name in written.names:
        inputs = golden["tokens" if name.startswith("text") else "pixels"]
        encoder = open_onnx(folder / f"{name}.onnx", threads=1)
        encoder.alone = name in written.alone
        golden[name] = encoder.encode(inputs).astype(np.float32)
    return golden


def _training(teacher: TrainedTower) -> Training | None:
    """What was done to the weights that the teacher started from; None for a training from random ones."""
    if not teacher.steps:
        return "none"
    if teacher.origin is None:
        return None
    return "interpolated" if teacher.interpolation is not None and teacher.interpolation.share < 1 else "fine-tuned"


def _manifest(
    folder: Path, config: EncoderConfig, training: TrainingSet, written: ExportState, trained: dict[str, TrainedTower]
) -> EncoderManifest:
    towers: dict[str, dict[str, Variant]] = {}
    metrics = written.metrics
    for name in written.names:
        tower, _, variant = name.partition(".")
        path = folder / f"{name}.onnx"
        file, data = describe(path, path.name), data_file(path)
        towers.setdefault(tower, {})[variant] = Variant(
            file=file,
            data=describe(data, data.name) if data.is_file() else None,
            fingerprint=fingerprint(file.sha256, config.preprocess),
            torchscript=None if variant == "int8" else describe(folder / f"{tower}.pt", f"{tower}.pt"),
            alone=name in written.alone,
        )
        metrics[f"{name}.bytes"] = float(sum(f.bytes for f in towers[tower][variant].graph_files()))
    costs = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    metrics |= {f"{tower}.training.{c}": float(getattr(t, c)) for tower, t in trained.items() for c in costs}
    trained_on: dict[str, Any] = {"sha256": training.content_sha256, "products": len(training.product_ids)}
    trained_on |= {f"{split}_photos": len(photos) for split, photos in training.by_split.items()}
    return EncoderManifest(
        name=config.name,
        dim=config.dim,
        preprocess=config.preprocess,
        towers=towers,
        document="teacher.fp32",
        query=written.query,
        tokenizer=describe(folder / TOKENIZER, TOKENIZER) if "text" in towers else None,
        golden=describe(folder / "golden.npz", "golden.npz"),
        origin=trained["teacher"].origin,
        trained=_training(trained["teacher"]),
        recipe=config.as_dict()
        | {
            "data_sha256": training.content_sha256,
            "data": trained_on,
            "opset": OPSET,
            "notes": dict(sorted(written.notes.items())),
        }
        | {"trained_in": {tower: t.precision for tower, t in trained.items()}}
        | ({"interpolation": chosen.to_json()} if (chosen := trained["teacher"].interpolation) is not None else {}),
        metrics=metrics,
    )
