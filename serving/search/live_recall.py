"""Live recall: the replica repeats sampled queries with exact search.

Exact search over ten million rows takes a second or more, so that each measurement is followed by a pause of `REST` times its
length: at most about one per cent of one core.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serving.index.engine import EngineUnavailable, FilterTooSlow
from serving.index.recall import DEPTH, recall
from serving.search.query import QueryError
from serving.search.samples import Samples
from serving.telemetry.metrics import VERSIONS
from serving.versions.release import Release

K = 10
REST = 100
MIN_REST_S = 0.02
AWAY_S = 5.0
MAX_SAMPLES = 2000


@dataclass
class RecallSum:
    """Measurements of one version: the number of `queries` and the sum of their recalls."""

    queries: int = 0
    recall: float = 0.0


def measure_recall(release: Release, vector: np.ndarray, k: int = K) -> float:
    """Recall@k of the first phase for one unit query vector (d,), against exact search over bases and deltas; ties count as hits."""
    xq = vector[None]
    found = release.searcher.search(xq, max(release.candidates, k)).rows[:, :k]
    return recall(found, release.searcher.exact(xq, max(DEPTH, k)), k)


class LiveRecall:
    """Measures each sample once with the live version, oldest first, pausing in between."""

    def __init__(
        self, samples: Samples, live: Callable[[], Release | None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.samples, self.live, self.clock = samples, live, clock
        self.sums: dict[str, RecallSum] = {}
        self.measured: dict[str, int] = {}
        self.lock = threading.Lock()

    def step(self) -> float:
        """Measures one sample, if any is left; returns the seconds to pause."""
        release = self.live()
        if release is None:
            return 1.0
        measured = self.measured.get(release.version, 0)
        waiting = [s for s in self.samples.newest(MAX_SAMPLES, release.query.fingerprint) if s.number > measured]
        if not waiting:
            return 1.0
        sample = waiting[-1]
        began = self.clock()
        try:
            recall = measure_recall(release, sample.vector)
        except (QueryError, EngineUnavailable, FilterTooSlow):  # a gateway whose shards are not all there measures another time
            return AWAY_S
        with self.lock:
            self.measured[release.version] = sample.number
            total = self.sums.setdefault(release.version, RecallSum())
            for old in list(self.sums)[:-VERSIONS]:
                del self.sums[old], self.measured[old]
            total.queries += 1
            total.recall += recall
        return max(REST * (self.clock() - began), MIN_REST_S)

    def sums_by_version(self) -> dict[str, RecallSum]:
        """Measurements since the start by version, of the last VERSIONS."""
        with self.lock:
            return {version: RecallSum(t.queries, t.recall) for version, t in self.sums.items()}
