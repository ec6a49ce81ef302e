"""Threads that work on searches. Each takes up to `most` of those that wait, and carries them through their phases together.

Under load that saves what a search costs besides its own arithmetic: one hand-over between threads, one call of the index, and
code that is still in the processor's caches. Nobody waits for it: where one search is there, it is worked on by itself.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from serving.together import Search, together


class Workers:
    """`count` threads, started when searches come. `done` is called in a worker with the searches that are over.

    Of several that are idle the one that was busy last is woken: what it needs is still in its core's caches.
    """

    def __init__(self, count: int, most: int, done: Callable[[list[Search]], None]) -> None:
        self.count, self.most, self.done = count, most, done
        self.waiting: deque[Search] = deque()
        self.idle: list[threading.Lock] = []  # each is waited for by an idle worker, and wakes it when it is released
        self.threads: list[threading.Thread] = []
        self.over = False

    def submit(self, search: Search) -> None:
        """By one thread at a time: the loop's."""
        self.waiting.append(search)
        if not self._wake() and len(self.threads) < self.count:
            number = len(self.threads)
            thread = threading.Thread(target=self._work, args=(number,), name=f"search-{number}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def close(self) -> None:
        """No further search is begun; those under way are not waited for."""
        self.over = True
        while self._wake():
            pass

    def _wake(self) -> bool:
        """Wakes an idle worker; False where none is idle."""
        try:
            self.idle.pop().release()
        except IndexError:
            return False
        return True

    def _work(self, number: int) -> None:
        keep_to(cores_of(number, self.count))
        bell = threading.Lock()
        bell.acquire()
        while not self.over:
            if not self._round():
                self._rest(bell)

    def _round(self) -> bool:
        """One lot of searches; False where none waits. Nothing of them outlives it: an error's traceback would hold a version."""
        share = min(-(-len(self.waiting) // self.count), self.most)
        taken: list[Search] = []
        with suppress(IndexError):  # another worker was quicker
            while len(taken) < share:
                taken.append(self.waiting.popleft())
        if taken:
            together(taken)
            self.done(taken)
        return bool(taken)

    def _rest(self, bell: threading.Lock) -> None:
        """Waits until there may be something to do."""
        self.idle.append(bell)
        if self.waiting or self.over:  # since this worker looked: whoever came may not have seen it among the idle
            with suppress(ValueError):
                self.idle.remove(bell)
                return
        bell.acquire()  # where it is not among the idle any more it is being released


def cores_of(number: int, count: int) -> set[int]:
    """A worker's own among the cores that this process may use; all of them where there is not one for each of the `count`.

    Left to itself, Linux has threads that hand Python's lock to each other take turns on one core, with others idle beside it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(os.getpid()))
    return set(cores[number::count] if count <= len(cores) else cores)


def keep_to(cores: set[int]) -> None:
    """From now on this thread runs on these cores alone, where the system lets it say so."""
    if cores:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
