"""Tie-aware recall@k of approximate against exact results, by row or key: similarities of a coded index are estimates."""

import numpy as np

from serving.index.merge import Neighbors

DEPTH = 100
"""Depth of exact results, beyond k, so that rows that tie with the k-th are known."""
TIE = 1e-4
"""Similarities this close tie: the rounding error of float16 storage is about as large."""


def recall(found: np.ndarray, exact: Neighbors, k: int) -> float:
    """Mean recall@k of results `found` (nq, any) int64 (-1: none); rows that tie with the exact k-th count as hits.

    `exact` is best first, in the same ids (rows or keys) as `found`.
    """
    wanted = (exact.rows[:, :k] >= 0).sum(axis=1)
    last = exact.similarity[np.arange(len(found)), np.maximum(wanted - 1, 0)]
    right = np.where((exact.rows >= 0) & (exact.similarity >= last[:, None] - TIE), exact.rows, -2)
    hits = np.array([np.isin(f[f >= 0], r).sum() for f, r in zip(found, right, strict=True)])
    return float(np.mean(np.where(wanted > 0, np.minimum(hits, wanted) / np.maximum(wanted, 1), 1.0)))
