"""When a question is asked a second time: after the 95th percentile of the shard's recent answers, and never beyond a share of all.

J. Dean, L. A. Barroso, "The Tail at Scale", CACM 56(2), 2013: a hedge after the 95th percentile costs at most 5 % more work.
"""

import threading
from collections import deque

import numpy as np


class Latencies:
    """How long a shard's last answers took: their 95th percentile says when one is late."""

    def __init__(self, kept: int = 256, least: int = 20) -> None:
        self.recent: deque[float] = deque(maxlen=kept)
        self.least, self.since, self.p95_s = least, 0, float("inf")

    def add(self, took_s: float) -> None:
        self.recent.append(took_s)
        self.since += 1
        if self.since >= 16 and len(self.recent) >= self.least:
            self.since = 0
            self.p95_s = float(np.percentile(list(self.recent), 95))


class HedgeBudget:
    """Hedges as a share of all questions: a fleet that is slow because it is overloaded is not asked twice as much."""

    def __init__(self, share: float, most: float = 10.0) -> None:
        self.share, self.most, self.left = share, most, 0.0
        self.lock = threading.Lock()

    def earn(self) -> None:
        with self.lock:
            self.left = min(self.most, self.left + self.share)

    def spend(self) -> bool:
        with self.lock:
            if self.left < 1.0:
                return False
            self.left -= 1.0
            return True
