"""Photos that come at the same time, encoded together: one run of the network over several costs less than one run for each.

No thread of its own: the first photo of a batch waits for others while another batch is being encoded, runs the batch, and hands
each caller its vector. Where nothing else is being encoded nobody waits.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Batching:
    """At most `most` photos together, the first of which waits at most `wait_s`. `most` 1: each by itself."""

    most: int = 1
    wait_s: float = 0.002


ALONE = Batching()


@dataclass
class Batch:
    """Photos that are encoded together. `go`: it need not wait any longer; `done`: the vectors, or an error, are there."""

    items: list[np.ndarray] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    vectors: np.ndarray | None = None
    error: Exception | None = None


class Batcher:
    """Wraps `encode`, which takes a batch (n, …) and gives vectors (n, d). Safe for several threads."""

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], batching: Batching) -> None:
        self.encode, self.batching = encode, batching
        self.gathering: Batch | None = None
        self.under_way = 0
        self.lock = threading.Lock()

    def one(self, item: np.ndarray) -> np.ndarray:
        """The vector (d,) of one item. Raises what `encode` raises, to everybody whose item was in that batch."""
        with self.lock:
            batch, leads = self.gathering, False
            if batch is None:
                batch, leads = Batch(), True
                self.gathering = batch
            place = len(batch.items)
            batch.items.append(item)
            if len(batch.items) >= self.batching.most:
                self.gathering = None
                batch.go.set()
            waits = leads and self.under_way > 0
        if leads:
            if waits:
                batch.go.wait(self.batching.wait_s)
            self._run(batch)
        else:
            batch.done.wait()
        if batch.error is not None:
            raise batch.error
        assert batch.vectors is not None
        return batch.vectors[place]

    def _run(self, batch: Batch) -> None:
        with self.lock:
            if self.gathering is batch:
                self.gathering = None
            self.under_way += 1
        try:
            batch.vectors = self.encode(np.stack(batch.items))
        except Exception as error:  # each caller gets it, in its own thread
            batch.error = error
        with self.lock:
            self.under_way -= 1
            if self.gathering is not None:
                self.gathering.go.set()
        batch.done.set()
