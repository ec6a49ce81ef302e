"""Search quality metrics as pure functions over ids."""

import numpy as np


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Recall@k when each query has one right product: the share of `ranks` (nq,) int, 0 the best and -1 not found, below k."""
    return float(np.mean((ranks >= 0) & (ranks < k))) if len(ranks) else 0.0
