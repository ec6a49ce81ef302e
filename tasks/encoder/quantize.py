"""The student in int8 for CPUs: static, per channel, calibrated on catalogue pictures, and kept only if recall survives.

Dynamic quantisation takes its activation scales from the batch at hand, so a vector would depend on its neighbours; it is
measured in tests/benchmarks/bench_encoder.py and never shipped.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.encoder.photos import TrainingSet, cached_pixels
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.vectors import encode
from tasks.metrics import ranks, recall_at

LEAST_SHARE = 0.99
"""An int8 student ships when it keeps this share of fp32's Recall@10."""
LEAST_COSINE = 0.98
"""The same decision where there are no held-out photos: the mean cosine to fp32 on calibration pictures."""
CALIBRATION = 128
QUANTISED_OPERATORS = ["Conv", "Gemm", "MatMul"]
"""Quantising Add as well broke ViTs (docs/performance.md: cosine 0.86)."""
METHODS = ("minmax", "percentile")


@dataclass(frozen=True)
class Quantised:
    """Whether `student.int8.onnx` was kept, and what was measured of each method."""

    kept: bool
    metrics: dict[str, float]


def quantised(folder: Path, training: TrainingSet, config: EncoderConfig, work: Path, calibration: np.ndarray) -> Quantised:
    """Tries each calibration method on `student.fp32.onnx`; the best goes to `student.int8.onnx` if it passes."""
    source, target = folder / "student.fp32.onnx", folder / "student.int8.onnx"
    measure = _recall_measure(folder, training, config, work)
    fp32 = measure(source) if measure else 1.0
    metrics = {"student.fp32.recall_at_10": fp32} if measure else {}
    best = -1.0
    for method in METHODS:
        trial = folder / f".student.{method}.onnx"
        quantise_static(source, trial, calibration[:CALIBRATION], method)
        cosine = float((encode(trial, calibration) * encode(source, calibration)).sum(axis=1).mean())
        metrics[f"student.int8.{method}.cosine"] = cosine
        value = cosine
        if measure:
            value = metrics[f"student.int8.{method}.recall_at_10"] = measure(trial)
        if value > best:
            best = value
            trial.replace(target)
        trial.unlink(missing_ok=True)
    kept = best >= LEAST_SHARE * fp32 if measure else best >= LEAST_COSINE
    metrics["student.int8.kept"] = float(kept)
    if not kept:
        target.unlink()
    return Quantised(kept, metrics)


def quantise_static(source: Path, target: Path, calibration: np.ndarray, method: str) -> None:
    """Writes an int8 QDQ copy of an image graph, per channel; `calibration` (n, size, size, 3) uint8 sets the ranges."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            _reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTISED_OPERATORS,
            calibrate_method={"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}[method],
            extra_options={"CalibPercentile": 99.99} if method == "percentile" else {},
        )


def quantise_dynamic(source: Path, target: Path) -> None:
    """Writes a dynamically quantised copy (MatMul and Gemm weights in int8): for comparison; see the module's docstring."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(source), str(target), per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )


def _reader(calibration: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([calibration[i : i + 32] for i in range(0, len(calibration) // 32 * 32 or len(calibration), 32)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    return Reader()


def _recall_measure(folder: Path, training: TrainingSet, config: EncoderConfig, work: Path) -> Any:
    """A function from an image graph's path to its Recall@10 against the teacher's documents; None without held-out photos."""
    photos = training.held_out()
    if not len(photos):
        return None
    documents = cached_pixels(training.image_uris, training.root, config.preprocess, work / "pixels", "document")
    queries = cached_pixels(photos.uris, training.root, config.preprocess, work / "pixels", "query")
    xb = encode(folder / "teacher.fp32.onnx", documents.array)

    def measure(path: Path) -> float:
        similarity = encode(path, queries.array) @ xb.T
        similarity[:, ~documents.usable] = -np.inf
        return recall_at(ranks(similarity, photos.products)[queries.usable], 10)

    return measure


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser warns through the root logger about shapes it does not need, and prints its thresholds."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
