"""Encodes many pictures or texts in batches of one fixed size."""

from pathlib import Path

import numpy as np

from serving.contract.encoder import Encoder
from serving.contract.runtimes import ONNXRUNTIME

BATCH = 64


def open_onnx(path: Path, threads: int = 2) -> Encoder:
    """Opens an ONNX file outside of an encoder version in ONNX Runtime, without golden outputs to verify."""
    return Encoder(ONNXRUNTIME.open(path, "fp32", threads), path.stem, "", ONNXRUNTIME.name)


def encode(model: Path | Encoder, inputs: np.ndarray, threads: int = 2) -> np.ndarray:
    """Vectors (n, dim) float32 of `inputs` (n, …), possibly a memory map; the last batch is zero-padded."""
    encoder = model if isinstance(model, Encoder) else open_onnx(model, threads)
    parts = []
    for start in range(0, len(inputs), BATCH):
        part = np.asarray(inputs[start : start + BATCH])
        filled = np.zeros((BATCH, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        parts.append(encoder.encode(filled)[: len(part)])
    return np.concatenate(parts)
