"""WiSE-FT (Wortsman et al. 2022): weights between those that a training started from and those it ended with.

What a fine-tuning gains on photos like those it saw, it loses on others; a point between both keeps most of each. The point is chosen
on train photos that were kept out of the training, never on those that recall is reported of.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.catalog.splits import hash_fraction
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.augment import to_float
from tasks.encoder.data.photos import Photos, TrainingSet
from tasks.encoder.data.pixels import cached_pixels, content_digests
from tasks.encoder.evaluate.retrieval_metrics import mean_reciprocal_rank, ranks, recall_at
from tasks.encoder.train.tower_record import Interpolated, Interpolation
from tasks.encoder.train.towers import Teacher

KEPT_OUT = 0.1
"""Of the train photos: what the share is chosen on."""
LEAST, MOST = 50, 2000
"""Photos to choose on: with fewer there is no choice, more would take time and say the same."""
DOCUMENTS = 4096
"""In a larger catalogue, the photos are searched among the products that they show."""
SHARES = (0.0, 0.5, 0.7, 0.85, 1.0)
BATCH = 64

log = logging.getLogger(__name__)


def kept_out(training: TrainingSet) -> np.ndarray:
    """The train photos (n,) bool that a share is chosen on: a tenth, by their names; none where those are too few to choose on."""
    chosen = np.asarray([hash_fraction(f"interpolation:{uri}") < KEPT_OUT for uri in training.split("train").uris], bool)
    return chosen if chosen.sum() >= LEAST else np.zeros_like(chosen)


def pretrained_state(teacher: Teacher, config: EncoderConfig) -> dict[str, Tensor]:
    """Copies of the tensors that somebody's weights were loaded into, by name; none for random ones, nor of layers put on top."""
    if not config.teacher.starts_pretrained:
        return {}
    state, part = teacher.model.state_dict(), "visual.trunk." if config.teacher.timm else ""
    return {name: tensor.detach().clone() for name, tensor in state.items() if name.startswith(part)}


def interpolate(
    teacher: Teacher, start: dict[str, Tensor], training: TrainingSet, config: EncoderConfig, work: Path
) -> Interpolation | None:
    """Moves the trained teacher towards the weights it started from, as far as `kept_out` photos gain by it; None with too few.

    `start` are the tensors by name that were pretrained; others stay as they were trained. Equal shares: the smaller one.
    """
    train, chosen = training.split("train"), np.flatnonzero(kept_out(training))[:MOST]
    if not len(chosen):
        return None
    photos = Photos(tuple(train.uris[i] for i in chosen), train.products[chosen])
    few = len(training.image_uris) <= DOCUMENTS
    products = np.arange(len(training.image_uris)) if few else np.unique(photos.products)
    uris = [training.image_uris[p] for p in products]
    shown = cached_pixels(uris, training.root, config.preprocess, work / "pixels", "document", 1.0)
    asked = cached_pixels(photos.uris, training.root, config.preprocess, work / "pixels", "interpolation", 1.0)
    usable = asked.usable & ~_copies(asked.digests, training)
    if usable.sum() < LEAST:
        log.warning("no interpolation: %d of %d photos kept out of the training can be asked", usable.sum(), len(chosen))
        return None
    right = np.searchsorted(products, photos.products)
    state = teacher.model.state_dict()
    end = {name: state[name].clone() for name in start}
    tried = []
    for share in SHARES:
        teacher.model.load_state_dict(between(start, end, share), strict=False)
        similarity = _vectors(teacher, asked.array) @ _vectors(teacher, shown.array).T
        similarity[:, ~shown.usable] = -np.inf
        rank = ranks(similarity, right)[usable]
        tried.append(Interpolated(share, recall_at(rank, 1), recall_at(rank, 10), mean_reciprocal_rank(rank)))
    best = max(tried, key=lambda t: t.mrr)
    teacher.model.load_state_dict(between(start, end, best.share), strict=False)
    log.info("interpolation: %.1f of the training, MRR %.3f on %d photos kept out of it", best.share, best.mrr, usable.sum())
    return Interpolation(best.share, int(usable.sum()), tuple(tried))


def _copies(digests: np.ndarray, training: TrainingSet) -> np.ndarray:
    """Which of the photos (n, 32) uint8 are copies of photos that recall is reported of (n,) bool."""
    held_out = set(content_digests(training.never_trained().uris, training.root)) - {b""}
    return np.asarray([digest.tobytes() in held_out for digest in digests], bool)


def between(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The tensors `share` of the way from `start` to `end`; counters are those of the end."""
    return {name: torch.lerp(start[name], end[name], share) if end[name].is_floating_point() else end[name] for name in end}


def _vectors(teacher: Teacher, pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (n, dim) float32 of `pixels` (n, s, s, 3) uint8."""
    where = teacher.image.mean.device
    parts = []
    with torch.no_grad():
        for first in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.array(pixels[first : first + BATCH])).to(where)
            parts.append(teacher.image(to_float(batch)).cpu().numpy())
    return np.concatenate(parts)
