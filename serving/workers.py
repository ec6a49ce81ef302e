"""Threads that work on searches. Each takes up to `most` of those that wait, and carries them through their phases together.

Under load that saves what a search costs besides its own arithmetic: one hand-over between threads, one call of the index, and
code that is still in the processor's caches. Nobody waits for it: where one search is there, it is worked on by itself.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from serving.together import Search, together


class Workers:
    """`count` threads, started with the first search. `done` is called in a worker with the searches that are over."""

    def __init__(self, count: int, most: int, done: Callable[[list[Search]], None]) -> None:
        self.count, self.most, self.done = count, most, done
        self.waiting: SimpleQueue[Search | None] = SimpleQueue()  # None: it is over
        self.threads: list[threading.Thread] = []

    def submit(self, search: Search) -> None:
        """By one thread at a time: the loop's."""
        self.waiting.put(search)
        if len(self.threads) < self.count:
            thread = threading.Thread(target=self._work, name=f"search-{len(self.threads)}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def close(self) -> None:
        """No further search is begun; those under way are not waited for."""
        self._more(self.waiting.qsize())
        for _ in self.threads:
            self.waiting.put(None)

    def _work(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """One lot of searches; False when it is over. Nothing of them outlives it: an error's traceback would hold a version."""
        first = self.waiting.get()
        if first is None:
            return False
        share = -(-(1 + self.waiting.qsize()) // self.count)
        taken = [first, *self._more(min(share, self.most) - 1)]
        together(taken)
        self.done(taken)
        return True

    def _more(self, most: int) -> list[Search]:
        """Up to so many of those that wait."""
        taken: list[Search] = []
        try:
            while len(taken) < most:
                search = self.waiting.get_nowait()
                if search is None:
                    self.waiting.put(None)
                    break
                taken.append(search)
        except Empty:
            pass
        return taken
