"""Threads that work on searches. Each takes up to `most` of those that wait, and carries them through their phases together.

Under load that saves what a search costs besides its own arithmetic: one hand-over between threads, one call of the index, and
code that is still in the processor's caches. Nobody waits for it: where one search is there, it is worked on by itself.
"""

import threading
from collections import deque
from collections.abc import Callable

from serving.together import Search, together


class Workers:
    """`count` threads, started with the first search. `done` is called in a worker with the searches that are over."""

    def __init__(self, count: int, most: int, done: Callable[[list[Search]], None]) -> None:
        self.count, self.most, self.done = count, most, done
        self.waiting: deque[Search] = deque()
        self.there = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.closed = False

    def submit(self, search: Search) -> None:
        with self.there:
            self.waiting.append(search)
            if len(self.threads) < self.count:
                thread = threading.Thread(target=self._work, name=f"search-{len(self.threads)}", daemon=True)
                self.threads.append(thread)
                thread.start()
            self.there.notify()

    def close(self) -> None:
        """No further search is begun; those under way are not waited for."""
        with self.there:
            self.closed = True
            self.waiting.clear()
            self.there.notify_all()

    def _work(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """One lot of searches; False when it is over. Nothing of them outlives it: an error's traceback would hold a version."""
        taken = self._taken()
        if taken:
            together(taken)
            self.done(taken)
        return bool(taken)

    def _taken(self) -> list[Search]:
        """The next searches, once there are some: no more than this worker's share of those that wait. [] when it is over."""
        with self.there:
            self.there.wait_for(lambda: self.waiting or self.closed)
            share = -(-len(self.waiting) // self.count)
            return [self.waiting.popleft() for _ in range(min(share, self.most))]
