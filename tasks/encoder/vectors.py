"""Unit vectors of many pictures or texts through an ONNX file, in batches of one fixed size."""

from pathlib import Path

import numpy as np

from serving.contract.encoder import OnnxEncoder

BATCH = 64


def encode(model: Path | OnnxEncoder, inputs: np.ndarray, threads: int = 2) -> np.ndarray:
    """Vectors (n, dim) float32 of `inputs` (n, …), which may be a memory map; the last batch is filled up with zeros."""
    encoder = model if isinstance(model, OnnxEncoder) else OnnxEncoder(model, model.stem, "", threads)
    parts = []
    for start in range(0, len(inputs), BATCH):
        part = np.asarray(inputs[start : start + BATCH])
        filled = np.zeros((BATCH, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        parts.append(encoder.encode(filled)[: len(part)])
    return np.concatenate(parts)
