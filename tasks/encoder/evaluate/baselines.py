"""Baselines that a trained encoder must beat: colour histograms, and the network before the training."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from serving.contract.manifest import EncoderManifest
from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.augment import to_float
from tasks.encoder.lookup import pretrained_start
from tasks.encoder.train.towers import ImageEncoder, build_teacher

HISTOGRAM, UNTRAINED, PRETRAINED = "colour_histogram", "untrained", "pretrained"
BINS = 8
HISTOGRAM_SPEC = PreprocessSpec(size=224)
"""Colours are counted on pictures of the usual size: at an encoder's 48 pixels the baseline would look worse than it is."""
BATCH = 64


@dataclass(frozen=True)
class Baseline:
    """What embeds for comparison: from pixels (n, s, s, 3) uint8 of `spec` to unit vectors (n, d) float32."""

    name: str
    spec: PreprocessSpec
    encode: Callable[[np.ndarray], np.ndarray]


def baselines_of(manifest: EncoderManifest) -> tuple[Baseline, ...]:
    """The baselines of a version: a colour histogram, and its own teacher before the training, where there was one.

    That is the pretrained encoder as it is, with its own dimension and preprocessing, where the training began with one; raises
    TrainingError when its weights are gone.
    """
    colours = Baseline(HISTOGRAM, HISTOGRAM_SPEC, colour_histograms)
    if "teacher" not in manifest.recipe or manifest.trained == "none":
        return (colours,)
    config = EncoderConfig.from_dict(manifest.recipe)
    if not config.teacher.starts_pretrained:
        return colours, _eager(UNTRAINED, config, load_pretrained=False)
    return colours, _eager(PRETRAINED, pretrained_start(config), load_pretrained=True)


def _eager(name: str, config: EncoderConfig, load_pretrained: bool) -> Baseline:
    encoder = build_teacher(config, load_pretrained).image.eval()
    return Baseline(name, config.preprocess, lambda pixels: encode_eager(encoder, pixels))


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


def encode_eager(encoder: ImageEncoder, pixels: np.ndarray) -> np.ndarray:
    """Vectors (n, dim) float32 of `pixels` (n, s, s, 3) uint8 by PyTorch on the CPU."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            parts.append(encoder(to_float(torch.from_numpy(np.array(pixels[start : start + BATCH])))).numpy())
    return np.concatenate(parts)
