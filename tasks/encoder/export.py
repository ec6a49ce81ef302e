"""From trained towers to an encoder folder: single-file ONNX graphs that take pixels or tokens and give unit vectors."""

import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.encoder import EncoderFolder, OnnxEncoder
from serving.contract.files import describe, written_whole
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from tasks.encoder.photos import Photos, TrainingSet, cached_pixels, read_training_set
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.quantize import quantised
from tasks.encoder.teacher import title_tokens
from tasks.encoder.tokenizer import write_tokenizer
from tasks.encoder.towers import ImageEncoder, parameters
from tasks.encoder.trained import TrainedTower, load_tower, restore_student, restore_teacher
from tasks.errors import TrainingError

OPSET = 18
CURVES = "training.json"
"""The loss of every step, by tower: for the report page."""
GOLDEN_PICTURES = 16
GOLDEN_TEXTS = 8
PARITY_PICTURES = 64
PARITY_LIMIT = 1e-4
"""Most that any coordinate of an fp32 graph may differ from PyTorch on real pictures; about 1e-6 is usual."""

log = logging.getLogger(__name__)


class ImageGraph(nn.Module):
    """What is exported: pixels (n, size, size, 3) uint8 RGB to unit vectors (n, dim) float32."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0)


@dataclass(frozen=True)
class Samples:
    """Real inputs for golden answers, parity, and calibration."""

    pixels: np.ndarray
    tokens: np.ndarray


def export_encoder(
    snapshot_uri: str, teacher: TrainedTower, student: TrainedTower, config: EncoderConfig, work: Path, folder: Path
) -> EncoderManifest:
    """Writes the encoder version into `folder` (encoder.json last) and gives its manifest.

    Roles: the teacher embeds documents; the student embeds queries, in int8 when that keeps its recall. Every graph is opened
    through the serving contract once before the manifest is believed. Raises TrainingError when a graph does not agree with
    PyTorch.
    """
    training = read_training_set(snapshot_uri)
    full_teacher, image_student = restore_teacher(teacher, config), restore_student(student, config)
    assert isinstance(image_student, ImageEncoder)
    samples = _samples(training, config, title_tokens(training, config, full_teacher).numpy(), work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size, context = config.preprocess.size, full_teacher.context()
    image_example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    graphs: dict[str, tuple[nn.Module, Tensor]] = {
        "teacher.fp32": (ImageGraph(full_teacher.image), image_example),
        "student.fp32": (ImageGraph(image_student), image_example),
        "text.fp32": (full_teacher.text, torch.from_numpy(samples.tokens[:2].copy())),
    }
    metrics: dict[str, float] = {}
    for name, (module, example) in graphs.items():
        export_graph(module, example, folder / f"{name}.onnx")
        inputs = samples.tokens if name.startswith("text") else samples.pixels[:PARITY_PICTURES]
        metrics |= _parity(name, module, folder / f"{name}.onnx", inputs)
    names = list(graphs)
    found = quantised(folder, training, config, work, samples.pixels)
    metrics |= found.metrics
    if found.kept:
        names.append("student.int8")
    metrics |= {
        "teacher.parameters": float(parameters(full_teacher.image)),
        "student.parameters": float(parameters(image_student)),
    }
    write_tokenizer(folder / "tokenizer.json", context)
    curves = {t.tower: load_tower(t).values["loss"] for t in (teacher, student)}
    (folder / CURVES).write_text(json.dumps(curves))
    golden = _golden(folder, names, config, samples)
    np.savez(folder / "golden.npz", **golden)
    manifest = _manifest(folder, names, config, training, metrics, {"teacher": teacher, "student": student})
    with written_whole(folder / "encoder.json") as path:
        path.write_text(json.dumps(manifest.model_dump(), indent=1))
    for name in names:
        EncoderFolder(folder).open(name)
    return manifest


def export_graph(module: nn.Module, example: Tensor, path: Path) -> None:
    """One single-file ONNX graph with a free batch size. The input is called `input`, the output `vectors`."""
    with warnings.catch_warnings():  # the exporter warns about its own dependencies
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)


def _samples(training: TrainingSet, config: EncoderConfig, tokens: np.ndarray, work: Path) -> Samples:
    """Pictures spread over train photos and catalogue (never held-out photos), through the contract's own preprocessing."""
    train, some = training.split("train"), 256
    rows = np.unique(np.linspace(0, len(train) - 1, some).round().astype(int))
    photos = Photos(tuple(train.uris[i] for i in rows), train.products[rows])
    products = np.unique(np.linspace(0, len(training.image_uris) - 1, some // 2).round().astype(int))
    uris = [*photos.uris, *(training.image_uris[i] for i in products)]
    found = cached_pixels(uris, training.root, config.preprocess, work / "pixels", "calibration")
    pixels = np.array(found.array[found.usable])
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
    return Samples(pixels, tokens[:: max(1, len(tokens) // GOLDEN_TEXTS)][:GOLDEN_TEXTS])


def _parity(name: str, module: nn.Module, path: Path, inputs: np.ndarray) -> dict[str, float]:
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    found = OnnxEncoder(path, name, "", threads=2).encode(inputs)
    difference, cosine = float(np.abs(found - expected).max()), float((found * expected).sum(axis=1).min())
    if not difference <= PARITY_LIMIT:
        raise TrainingError(
            f"{name}: the ONNX graph differs from PyTorch by {difference:.2g} (allowed {PARITY_LIMIT:g}); it is not usable"
        )
    return {f"{name}.parity_max_difference": difference, f"{name}.parity_min_cosine": cosine}


def _golden(folder: Path, names: list[str], config: EncoderConfig, samples: Samples) -> dict[str, Any]:
    golden: dict[str, Any] = {"pixels": samples.pixels[:GOLDEN_PICTURES], "tokens": samples.tokens.astype(np.int64)}
    for name in names:
        inputs = golden["tokens" if name.startswith("text") else "pixels"]
        golden[name] = OnnxEncoder(folder / f"{name}.onnx", name, "").encode(inputs).astype(np.float32)
    return golden


def _manifest(
    folder: Path,
    names: list[str],
    config: EncoderConfig,
    training: TrainingSet,
    metrics: dict[str, float],
    trained: dict[str, TrainedTower],
) -> EncoderManifest:
    towers: dict[str, dict[str, Variant]] = {}
    for name in names:
        tower, _, variant = name.partition(".")
        file = describe(folder / f"{name}.onnx", f"{name}.onnx")
        towers.setdefault(tower, {})[variant] = Variant(file=file, fingerprint=fingerprint(file.sha256, config.preprocess))
        metrics[f"{name}.bytes"] = float(file.bytes)
    costs = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    metrics |= {f"{tower}.training.{c}": float(getattr(t, c)) for tower, t in trained.items() for c in costs}
    return EncoderManifest(
        name=config.name,
        dim=config.dim,
        preprocess=config.preprocess,
        towers=towers,
        document="teacher.fp32",
        query="student.int8" if "student.int8" in names else "student.fp32",
        tokenizer=describe(folder / "tokenizer.json", "tokenizer.json"),
        golden=describe(folder / "golden.npz", "golden.npz"),
        recipe=config.as_dict() | {"data_sha256": training.content_sha256, "opset": OPSET},
        metrics=metrics,
    )
