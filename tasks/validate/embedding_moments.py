"""Mean and covariance of a run's vectors, stored so that the next run can measure drift."""

import io
from dataclasses import dataclass

import numpy as np

from tasks import storage

FILE = "_moments.npz"
SAMPLE = 500_000
"""Vectors that enter, evenly taken: 512-d needs far fewer for a stable covariance, and all of 10M would take a minute."""
LEAST = 500
"""Fewer vectors than this say little about a covariance: its relative error is about sqrt(effective dimension / n)."""


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and covariance (d, d) of vectors of the encoder with this fingerprint."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray
    fingerprint: str


class MomentsAccumulator:
    """Accumulates moments over batches of vectors."""

    def __init__(self, dim: int, expected: int) -> None:
        self.every = max(1, -(-expected // SAMPLE))
        self.seen = self.count = 0
        self.total, self.products = np.zeros(dim), np.zeros((dim, dim))

    def add(self, vectors: np.ndarray) -> None:
        """Adds vectors (n, d) float, all finite."""
        chosen = vectors[-self.seen % self.every :: self.every].astype(np.float32)
        self.seen += len(vectors)
        self.count += len(chosen)
        self.total += chosen.sum(axis=0, dtype=np.float64)
        self.products += chosen.T @ chosen

    def moments(self, fingerprint: str) -> Moments:
        mean = self.total / max(self.count, 1)
        return Moments(self.count, mean, self.products / max(self.count, 1) - np.outer(mean, mean), fingerprint)


def shift(before: Moments, now: Moments) -> tuple[float, float] | None:
    """(distance of the means, ||C' - C|| / ||C|| in Frobenius norm); None when not comparable.

    Vectors are of unit length, so a distance of 0.1 means that a tenth of the catalogue moved to one far place.
    """
    if before.fingerprint != now.fingerprint or before.mean.shape != now.mean.shape or min(before.count, now.count) < LEAST:
        return None
    scale = float(np.linalg.norm(before.covariance)) or 1.0
    moved = float(np.linalg.norm(now.covariance - before.covariance)) / scale
    return float(np.linalg.norm(now.mean - before.mean)), moved


def write_moments(vectors_uri: str, moments: Moments) -> None:
    stream = io.BytesIO()
    np.savez(
        stream, count=moments.count, mean=moments.mean, covariance=moments.covariance.astype(np.float32),
        fingerprint=np.array(moments.fingerprint),
    )  # fmt: skip
    storage.write_bytes(storage.join(vectors_uri, FILE), stream.getvalue())


def read_moments(vectors_uri: str) -> Moments | None:
    """Moments of a run; None when it stored none."""
    uri = storage.join(vectors_uri, FILE)
    if not storage.exists(uri):
        return None
    found = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    return Moments(int(found["count"]), found["mean"], found["covariance"].astype(np.float64), str(found["fingerprint"]))
