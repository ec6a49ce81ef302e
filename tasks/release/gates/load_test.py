"""Closed-loop load test of the whole search: each client sends its next photo when the last is answered."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.contract.preprocess import ImageRejected
from serving.versions.release import Release

CLIENTS = 4
"""Two workers of a replica (VITRINE_WORKERS) with as many again waiting for them."""
SECONDS = 2.0
TOP = 20


@dataclass(frozen=True)
class LoadResult:
    """Latencies (n,) in milliseconds, from bytes to ranking, and queries per second over all clients."""

    ms: np.ndarray
    qps: float
    clients: int

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.ms, q)) if len(self.ms) else 0.0


def run_load_test(release: Release, photos: Sequence[bytes], clients: int = CLIENTS, seconds: float | None = None) -> LoadResult:
    """Searches for `seconds` (default: SECONDS), or once per photo and client if that takes longer. Unreadable photos are skipped."""
    times: list[list[float]] = [[] for _ in range(clients)]
    errors: list[BaseException] = []
    ends = time.perf_counter() + (SECONDS if seconds is None else seconds)

    def ask(client: int) -> None:
        try:
            at = client
            while photos and (time.perf_counter() < ends or at < min(len(photos), clients)):
                began = time.perf_counter()
                try:
                    release.answer(release.encode_photo(photos[at % len(photos)]), TOP)
                except ImageRejected:
                    pass
                else:
                    times[client].append(1e3 * (time.perf_counter() - began))
                at += clients
        except BaseException as error:
            errors.append(error)

    release.warm()
    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(n,), name=f"load-{n}") for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    ms = np.array([t for own in times for t in own])
    return LoadResult(ms, len(ms) / max(time.perf_counter() - began, 1e-9), clients)
