"""How good search results are, as pure functions over ids. Ties count as found: two equal similarities are one answer."""

import numpy as np


def neighbour_recall(similarity: np.ndarray, truth: np.ndarray, k: int, tolerance: float = 1e-4) -> float:
    """Mean share of the true k nearest that were found, judged by similarity, so that ties do not matter.

    `similarity` (nq, >=k) of what was found and `truth` (nq, >=k) of exact search, both best first; -inf where there is none.
    (faiss contrib/evaluation.py: knn_intersection_measure, made tie-aware as ann-benchmarks does.)
    """
    truth = truth[:, :k]
    wanted = np.isfinite(truth).sum(axis=1)
    last = np.where(wanted > 0, truth[np.arange(len(truth)), np.maximum(wanted - 1, 0)], np.inf)
    found = (similarity[:, :k] >= last[:, None] - tolerance).sum(axis=1)
    return float(np.mean(np.minimum(found, wanted) / np.maximum(wanted, 1)))


def hit_at(ranks: np.ndarray, k: int) -> float:
    """Recall@k when each query has one right product: the share of `ranks` (nq,) int, 0 the best and -1 not found, below k."""
    return float(np.mean((ranks >= 0) & (ranks < k))) if len(ranks) else 0.0
