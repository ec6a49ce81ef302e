"""Exports trained towers to an encoder folder: single-file graphs from pixels or tokens to unit vectors."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.encoder import GOLDEN, EncoderFolder
from serving.contract.files import ContractError, atomic_write, describe
from serving.contract.graph_check import IN_CHILD, Check
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from tasks.encoder.data.photos import Photos, TrainingSet, read_training_set
from tasks.encoder.data.pixels import cached_pixels
from tasks.encoder.data.text_tokens import title_tokens
from tasks.encoder.evaluate.card import card
from tasks.encoder.evaluate.query_recall import recall_measure
from tasks.encoder.evaluate.vectors import encode, open_onnx
from tasks.encoder.export.mlflow_flavor import write_flavor
from tasks.encoder.export.onnx_graph import OPSET, ImageGraph, write_half, write_onnx, write_torchscript
from tasks.encoder.export.quantize import quantize_graph
from tasks.encoder.export.runtimes import TorchScript
from tasks.encoder.export.tokenizer import write_tokenizer
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.towers import ImageEncoder, parameters
from tasks.encoder.train.trained import load_tower, restore_student, restore_teacher
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
    tokens: np.ndarray

    def for_tower(self, name: str) -> np.ndarray:
        """The inputs that a tower's parity is measured on."""
        return self.tokens if name.startswith("text") else self.pixels[:PARITY_PICTURES]


@dataclass
class ExportState:
    """The files written so far: variants by "tower.variant", metrics, and decisions."""

    names: list[str] = field(default_factory=list)
    alone: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    query: str = "student.fp32"


def export_encoder(
    snapshot_uri: str,
    teacher: TrainedTower,
    student: TrainedTower,
    config: EncoderConfig,
    work: Path,
    folder: Path,
    runtime: Runtime = ONNXRUNTIME,
    check: Check = IN_CHILD,
) -> EncoderManifest:
    """Writes the encoder version into `folder` (encoder.json last but for card and MLmodel); returns its manifest.

    Roles: the teacher embeds documents; the student embeds queries, in int8 when that keeps its recall and `runtime`, which is
    to serve, is no slower with it. Every graph is opened by `check`, in a child process, before it is opened here, and through
    the serving contract before the manifest is believed. fp16 is optional: where it fails, the version ships without it and its
    notes say why. Raises TrainingError when another graph does not agree with PyTorch, ContractError when one does not open.
    """
    training = read_training_set(snapshot_uri)
    full_teacher, image_student = restore_teacher(teacher, config), restore_student(student, config)
    assert isinstance(image_student, ImageEncoder)
    samples = _samples(training, config, title_tokens(training, config, full_teacher).numpy(), work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = config.preprocess.size
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    written = ExportState()
    for tower, module, example in (
        ("teacher", ImageGraph(full_teacher.image), pixels),
        ("student", ImageGraph(image_student), pixels),
        ("text", full_teacher.text, torch.from_numpy(samples.tokens[:2].copy())),
    ):
        _write_tower(tower, module, example, samples, folder, written, check)
    _write_int8(training, config, samples, work, folder, runtime, written, check)
    written.metrics |= {
        "teacher.parameters": float(parameters(full_teacher.image)),
        "student.parameters": float(parameters(image_student)),
    }
    write_tokenizer(folder / "tokenizer.json", full_teacher.context())
    curves = {t.tower: load_tower(t).values["loss"] for t in (teacher, student)}
    (folder / CURVES).write_text(json.dumps(curves))
    np.savez(folder / "golden.npz", **_golden(folder, written, samples))
    manifest = _manifest(folder, config, training, written, {"teacher": teacher, "student": student})
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
    name, least = f"{tower}.fp16", GOLDEN["fp16"].min_cosine
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
    else:
        written.names.append(name)


def _write_int8(
    training: TrainingSet, config: EncoderConfig, samples: Samples, work: Path, folder: Path, runtime: Runtime, written: ExportState,
    check: Check,
) -> None:  # fmt: skip
    source, target = folder / "student.fp32.onnx", folder / "student.int8.onnx"
    recall = recall_measure(folder / "teacher.fp32.onnx", training, config, work)
    kept = work / "int8" / training.content_sha256[:16]
    choice, trials, fp32 = quantize_graph(source, target, samples.pixels, recall, runtime, kept, check)
    for trial in (fp32, *trials):
        prefix = "student.fp32" if trial is fp32 else f"student.int8.{trial.method}"
        written.metrics |= {f"{prefix}.cosine": trial.cosine, f"{prefix}.ms": trial.ms}
        if trial.recall is not None:
            written.metrics[f"{prefix}.recall_at_10"] = trial.recall
    written.metrics["student.int8.kept"] = float(bool(choice.method))
    written.notes["student.int8"] = f"{choice.reason} ({runtime.name}, one picture, one thread)"
    if not choice.method:
        return
    written.names.append("student.int8")
    if choice.method == "dynamic":
        written.alone.add("student.int8")
    if not choice.slower:
        written.query = "student.int8"


def _compare(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest coordinate difference, and smallest cosine."""
    return float(np.abs(actual - expected).max()), float((actual * expected).sum(axis=1).min())


def _samples(training: TrainingSet, config: EncoderConfig, tokens: np.ndarray, work: Path) -> Samples:
    """Pictures sampled from train photos and catalogue (never held-out photos), preprocessed as in serving."""
    train, some = training.split("train"), 256
    rows = np.unique(np.linspace(0, len(train) - 1, some).round().astype(int))
    photos = Photos(tuple(train.uris[i] for i in rows), train.products[rows])
    products = np.unique(np.linspace(0, len(training.image_uris) - 1, some // 2).round().astype(int))
    uris = [*photos.uris, *(training.image_uris[i] for i in products)]
    found = cached_pixels(uris, training.root, config.preprocess, work / "pixels", "calibration", 1.0)
    pixels = np.array(found.array[found.usable])
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
    return Samples(pixels, tokens[:: max(1, len(tokens) // GOLDEN_TEXTS)][:GOLDEN_TEXTS])


def _golden(folder: Path, written: ExportState, samples: Samples) -> dict[str, Any]:
    """Inputs, and each variant's outputs in ONNX Runtime."""
    golden: dict[str, Any] = {"pixels": samples.pixels[:GOLDEN_PICTURES], "tokens": samples.tokens.astype(np.int64)}
    for name in written.names:
        inputs = golden["tokens" if name.startswith("text") else "pixels"]
        encoder = open_onnx(folder / f"{name}.onnx", threads=1)
        encoder.alone = name in written.alone
        golden[name] = encoder.encode(inputs).astype(np.float32)
    return golden


def _manifest(
    folder: Path, config: EncoderConfig, training: TrainingSet, written: ExportState, trained: dict[str, TrainedTower]
) -> EncoderManifest:
    towers: dict[str, dict[str, Variant]] = {}
    metrics = written.metrics
    for name in written.names:
        tower, _, variant = name.partition(".")
        file = describe(folder / f"{name}.onnx", f"{name}.onnx")
        towers.setdefault(tower, {})[variant] = Variant(
            file=file,
            fingerprint=fingerprint(file.sha256, config.preprocess),
            torchscript=None if variant == "int8" else describe(folder / f"{tower}.pt", f"{tower}.pt"),
            alone=name in written.alone,
        )
        metrics[f"{name}.bytes"] = float(file.bytes)
    costs = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    metrics |= {f"{tower}.training.{c}": float(getattr(t, c)) for tower, t in trained.items() for c in costs}
    data = {"sha256": training.content_sha256, "products": len(training.product_ids)}
    data |= {f"{split}_photos": len(photos) for split, photos in training.by_split.items()}
    return EncoderManifest(
        name=config.name,
        dim=config.dim,
        preprocess=config.preprocess,
        towers=towers,
        document="teacher.fp32",
        query=written.query,
        tokenizer=describe(folder / "tokenizer.json", "tokenizer.json"),
        golden=describe(folder / "golden.npz", "golden.npz"),
        recipe=config.as_dict()
        | {"data_sha256": training.content_sha256, "data": data, "opset": OPSET, "notes": dict(sorted(written.notes.items()))}
        | {"trained_in": {tower: t.precision for tower, t in trained.items()}},
        metrics=metrics,
    )
