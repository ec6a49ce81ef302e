"""Unit vectors of many pictures or texts through an encoder, in batches of one fixed size."""

from pathlib import Path

import numpy as np

from serving.contract.encoder import Encoder
from serving.contract.runtimes import ONNXRUNTIME

BATCH = 64


def open_onnx(path: Path, threads: int = 2) -> Encoder:
    """An ONNX file that is no version yet, in ONNX Runtime; its golden outputs are still to be made."""
    return Encoder(ONNXRUNTIME.open(path, "fp32", threads), path.stem, "", ONNXRUNTIME.name)


def encode(model: Path | Encoder, inputs: np.ndarray, threads: int = 2) -> np.ndarray:
    """Vectors (n, dim) float32 of `inputs` (n, …), which may be a memory map; the last batch is filled up with zeros."""
    encoder = model if isinstance(model, Encoder) else open_onnx(model, threads)
    parts = []
    for start in range(0, len(inputs), BATCH):
        part = np.asarray(inputs[start : start + BATCH])
        filled = np.zeros((BATCH, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        parts.append(encoder.encode(filled)[: len(part)])
    return np.concatenate(parts)
