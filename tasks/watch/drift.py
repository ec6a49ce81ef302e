"""Drift of vectors from a reference: the population stability index along the reference's principal directions."""

import io
from dataclasses import dataclass

import numpy as np

from tasks import storage

DIRECTIONS = 8
BINS = 10
LEAST = 100
"""Below so many vectors the index is mostly noise: about (BINS - 1) * (1/n + 1/m) for samples of one distribution
(Yurdakul 2018, "Statistical properties of population stability index")."""


@dataclass(frozen=True)
class Reference:
    """What vectors are compared with: `mean` (d,), principal `directions` (p, d), inner bin `edges` (p, BINS - 1) along
    each, and a few `projections` (n, 2) on the first two, for the plot."""

    mean: np.ndarray
    directions: np.ndarray
    edges: np.ndarray
    projections: np.ndarray
    count: int


@dataclass(frozen=True)
class Drift:
    """`index` is the largest population stability index over the directions: under 0.1 nothing moved, over 0.25 much did
    (Siddiqi 2006, "Credit risk scorecards"). `noise` is what samples of this size show by chance. `shift` is the distance of the
    two means. `projections` (n, 2) lie on the reference's first two directions."""

    index: float
    noise: float
    shift: float
    projections: np.ndarray
    count: int


def reference(vectors: np.ndarray) -> Reference:
    """The reference of vectors (n, d). Raises ValueError for fewer than LEAST."""
    _enough(vectors)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    values, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    directions = axes[:, np.argsort(-values)[:DIRECTIONS]].T
    along = centred @ directions.T
    edges = np.quantile(along, np.linspace(0, 1, BINS + 1)[1:-1], axis=0).T
    return Reference(mean, directions, edges, along[:1000, :2], len(vectors))


def drift(vectors: np.ndarray, base: Reference) -> Drift:
    """Drift of vectors (n, d) from the reference. Raises ValueError for fewer than LEAST."""
    _enough(vectors)
    along = (vectors - base.mean) @ base.directions.T
    indexes = [stability_index(along[:, i], base.edges[i]) for i in range(len(base.directions))]
    noise = (BINS - 1) * (1 / len(vectors) + 1 / base.count)
    shift = float(np.linalg.norm(vectors.mean(axis=0) - base.mean))
    return Drift(max(indexes), noise, shift, along[:1000, :2], len(vectors))


def stability_index(values: np.ndarray, edges: np.ndarray) -> float:
    """sum((p - q) * ln(p / q)) over bins: p the share of `values` (n,) in a bin, q = 1 / bins, the reference's share.

    Half a count is added to every bin, so that an empty one is no infinity.
    """
    bins = len(edges) + 1
    counts = np.bincount(np.searchsorted(edges, values), minlength=bins) + 0.5
    p, q = counts / counts.sum(), 1 / bins
    return float(((p - q) * np.log(p / q)).sum())


def save(base: Reference, uri: str) -> None:
    """Writes a reference to a local or s3:// uri, atomically."""
    held = io.BytesIO()
    np.savez(held, **vars(base))
    storage.write_bytes(uri, held.getvalue())


def load(uri: str) -> Reference | None:
    """The reference at a uri, None when there is none."""
    if not storage.exists(uri):
        return None
    with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as kept:
        return Reference(kept["mean"], kept["directions"], kept["edges"], kept["projections"], int(kept["count"]))


def _enough(vectors: np.ndarray) -> None:
    if len(vectors) < LEAST:
        raise ValueError(f"{len(vectors)} vectors, where at least {LEAST} are needed to tell drift from chance")
