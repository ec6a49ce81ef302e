"""Baselines that a trained encoder must beat: colour histograms, and the network before training."""

import numpy as np
import torch

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.augment import to_float
from tasks.encoder.train.towers import ImageEncoder, build_teacher

BINS = 8
HISTOGRAM_SPEC = PreprocessSpec(size=224)
"""Colours are counted on pictures of the usual size: at an encoder's 48 pixels the baseline would look worse than it is."""
BATCH = 64


def colour_histograms(pixels: np.ndarray) -> np.ndarray:
    """Square roots of 8x8x8 RGB histograms (n, 512) float32 of `pixels` (n, s, s, 3) uint8.

    Their inner product is the Bhattacharyya coefficient, whose order is that of the Hellinger distance; each has unit length.
    """
    result = np.empty((len(pixels), BINS**3), np.float32)
    for i, picture in enumerate(pixels):
        cells = (np.asarray(picture).reshape(-1, 3) >> 5).astype(np.int64)
        counts = np.bincount((cells[:, 0] * BINS + cells[:, 1]) * BINS + cells[:, 2], minlength=BINS**3)
        result[i] = np.sqrt(counts / counts.sum())
    return result


def untrained_encoder(config: EncoderConfig) -> ImageEncoder:
    """The teacher's image tower before training (random weights, whatever `pretrained` says)."""
    return build_teacher(config, load_pretrained=False).image.eval()


def encode_eager(encoder: ImageEncoder, pixels: np.ndarray) -> np.ndarray:
    """Vectors (n, dim) float32 of `pixels` (n, s, s, 3) uint8 by PyTorch on the CPU."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            parts.append(encoder(to_float(torch.from_numpy(np.array(pixels[start : start + BATCH])))).numpy())
    return np.concatenate(parts)
