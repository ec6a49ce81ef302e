"""How much of the exact answer a search found: judged by row or by key, since a coded index's similarities are estimates."""

import numpy as np

from serving.index.merge import Found

DEPTH = 100
"""Exact answers are taken so deep, beyond the few that count, so that what is as similar as the last of them counts as well."""
TIE = 1e-4
"""Similarities this close are one: float16 storage moves them by about as much."""


def recall(found: np.ndarray, exact: Found, k: int) -> float:
    """Mean share of the exact k nearest among what was found (nq, any) int64, -1 none; what ties with the k-th counts as well.

    `exact` is best first, with rows or keys as `found` has them.
    """
    wanted = (exact.rows[:, :k] >= 0).sum(axis=1)
    last = exact.similarity[np.arange(len(found)), np.maximum(wanted - 1, 0)]
    right = np.where((exact.rows >= 0) & (exact.similarity >= last[:, None] - TIE), exact.rows, -2)
    hits = np.array([np.isin(f[f >= 0], r).sum() for f, r in zip(found, right, strict=True)])
    return float(np.mean(np.where(wanted > 0, np.minimum(hits, wanted) / np.maximum(wanted, 1), 1.0)))
