"""Retrieval metrics as pure functions of ranks, with bootstrap intervals. A rank is 1 for the best; ties count against it."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap 95 % interval, over `n` queries."""

    value: float
    low: float
    high: float
    n: int

    @property
    def text(self) -> str:
        """A difference of two figures in words: with its sign and interval."""
        return f"{self.value:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f})"


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """The rank (nq,) int64 of each query's relevant column in `similarity` (nq, nb) float.

    Every other column that is as similar or more counts before it, so a constant encoder gets the worst rank, not the best.
    A column of -inf (a product without a picture) gives rank nb.
    """
    own = similarity[np.arange(len(similarity)), relevant][:, None]
    return np.maximum((similarity >= own).sum(axis=1), 1).astype(np.int64)


def best_by_group(similarity: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """The best similarity (nq, count) of each query to any column of a group; -inf for a group without columns."""
    best = np.full((len(similarity), count), -np.inf, similarity.dtype)
    np.maximum.at(best.T, groups, similarity.T)
    return best


def recall_at(rank: np.ndarray, k: int) -> float:
    """The share of queries whose product is among the first k; 0 for no queries."""
    return float((rank <= k).mean()) if len(rank) else 0.0


def mean_reciprocal_rank(rank: np.ndarray) -> float:
    """The mean of 1/rank. With one relevant product a query, mean average precision is the same number."""
    return float((1.0 / rank).mean()) if len(rank) else 0.0


def average_precision(similarity: np.ndarray, relevant: np.ndarray) -> float:
    """The average precision of one query: `similarity` (nb,) and which columns are right (nb,) bool, at least one of them.

    Wrong columns that are as similar count before a right one, as in `ranks`.
    """
    right = np.sort(similarity[relevant])[::-1]
    wrong = np.sort(similarity[~relevant])
    before = len(wrong) - np.searchsorted(wrong, right, side="left")
    found = np.arange(1, len(right) + 1)
    return float((found / (found + before)).mean())


def cluster_interval(values: np.ndarray, groups: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of per-query values (n,) with an interval that draws whole groups (n,): for few products with many photos each."""
    if not len(values):
        return Interval(0.0, 0.0, 0.0, 0)
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, np.asarray(values, np.float64)), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of per-query values (n,) with its percentile bootstrap interval."""
    if not len(values):
        return Interval(0.0, 0.0, 0.0, 0)
    means = _resampled_means(np.asarray(values, np.float64), seed, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of a - b (n,) over the same queries with its paired bootstrap interval: queries are drawn, never halves of one.

    Raises ValueError when the two are not measured on the same number of queries.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need equal lengths, got {len(a)} and {len(b)}")
    return interval(np.asarray(a, np.float64) - np.asarray(b, np.float64), seed, resamples)


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = len(values)
    return np.asarray([values[rng.integers(0, n, n)].mean() for _ in range(resamples)])
