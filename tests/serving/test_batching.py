"""Photos encoded together: each caller gets its own vector, nobody waits without need, an error reaches all it concerns."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.batching import Batcher, Batching
from tests.running import until


class Slow:
    """Doubles each item; keeps the sizes of its batches, and waits for `release` where a test holds it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.held = threading.Event()
        self.held.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.begun.release()
        self.held.wait(10)
        self.sizes.append(len(batch))
        if (batch < 0).any():
            raise RuntimeError("a negative picture")
        return 2 * batch


def test_alone_nobody_waits() -> None:
    slow = Slow()
    batcher = Batcher(slow, Batching(8, wait_s=60.0))
    assert batcher.one(np.array([3.0])).tolist() == [6.0]
    assert slow.sizes == [1]


def test_those_who_come_while_a_batch_runs_are_encoded_together() -> None:
    slow = Slow()
    batcher = Batcher(slow, Batching(4, wait_s=60.0))
    slow.held.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.one, np.array([0.0]))
        assert slow.begun.acquire(timeout=10)
        others = [pool.submit(batcher.one, np.array([float(n)])) for n in range(1, 4)]
        until(lambda: batcher.gathering is not None and len(batcher.gathering.items) == 3, limit_s=10)
        slow.held.set()  # the first ends, and the three that gathered go at once
        assert [f.result(10).item() for f in [first, *others]] == [0.0, 2.0, 4.0, 6.0]
    assert slow.sizes == [1, 3]


def test_a_full_batch_goes_before_its_time() -> None:
    slow = Slow()
    batcher = Batcher(slow, Batching(2, wait_s=60.0))
    slow.held.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.one, np.array([0.0]))
        assert slow.begun.acquire(timeout=10)
        others = [pool.submit(batcher.one, np.array([float(n)])) for n in (1, 2)]
        assert slow.begun.acquire(timeout=10)  # beside the first, which is still held
        slow.held.set()
        assert [f.result(10).item() for f in [first, *others]] == [0.0, 2.0, 4.0]
    assert sorted(slow.sizes) == [1, 2]


def test_a_wait_ends_after_its_time() -> None:
    slow = Slow()
    batcher = Batcher(slow, Batching(8, wait_s=0.01))
    slow.held.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.one, np.array([0.0]))
        assert slow.begun.acquire(timeout=10)
        second = pool.submit(batcher.one, np.array([1.0]))
        assert slow.begun.acquire(timeout=10)
        slow.held.set()
        assert (first.result(10).item(), second.result(10).item()) == (0.0, 2.0)


def test_an_error_reaches_everybody_of_its_batch_and_the_next_batch_is_well() -> None:
    batcher = Batcher(Slow(), Batching(4, wait_s=0.01))
    with pytest.raises(RuntimeError, match="a negative picture"):
        batcher.one(np.array([-1.0]))
    assert batcher.one(np.array([1.0])).item() == 2.0


def test_many_threads_each_get_their_own() -> None:
    slow = Slow()
    batcher = Batcher(slow, Batching(8, wait_s=0.001))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: batcher.one(np.array([float(n)])).item(), range(500)))
    assert found == [2.0 * n for n in range(500)]
    assert sum(slow.sizes) == 500
    assert max(slow.sizes) <= 8
