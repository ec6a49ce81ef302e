"""Hedged requests: sent after the 95th percentile of a shard's recent latencies, within a budget.

J. Dean, L. A. Barroso, "The Tail at Scale", CACM 56(2), 2013: a hedge after the 95th percentile costs at most 5 % more work.
"""

import threading
from collections import deque

import numpy as np

RENEW_EVERY = 16
"""Latencies from one computation of the percentile to the next."""


class Latencies:
    """A sliding window of a shard's latencies and their 95th percentile `p95_s` (infinity until `min_samples` are known)."""

    def __init__(self, window: int = 256, min_samples: int = 20) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.min_samples, self.since, self.p95_s = min_samples, 0, float("inf")

    def add(self, took_s: float) -> None:
        self.recent.append(took_s)
        self.since += 1
        if self.since >= RENEW_EVERY and len(self.recent) >= self.min_samples:
            self.since = 0
            self.p95_s = float(np.percentile(list(self.recent), 95))


class HedgeBudget:
    """Hedges as a share of all requests: an overloaded, and therefore slow, fleet does not get twice the load."""

    def __init__(self, share: float, burst: float = 10.0) -> None:
        self.share, self.burst, self.left = share, burst, 0.0
        self.lock = threading.Lock()

    def earn(self) -> None:
        with self.lock:
            self.left = min(self.burst, self.left + self.share)

    def spend(self) -> bool:
        with self.lock:
            if self.left < 1.0:
                return False
            self.left -= 1.0
            return True
