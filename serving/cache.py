"""Small caches in the process: least recently used goes first, and nothing is older than its time to live."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Cache:
    """At most `entries` values, each for at most `ttl_s` seconds. Safe for several threads. `hits` and `misses` count."""

    def __init__(self, entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.entries, self.ttl_s, self.clock = entries, ttl_s, clock
        self.kept: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self.lock = threading.Lock()
        self.hits = self.misses = 0

    def get(self, key: str) -> Any:
        """The value kept under a key, or None."""
        with self.lock:
            found = self.kept.get(key)
            if found is None or found[0] < self.clock():
                self.kept.pop(key, None)
                self.misses += 1
                return None
            self.kept.move_to_end(key)
            self.hits += 1
            return found[1]

    def put(self, key: str, value: Any) -> None:
        with self.lock:
            self.kept[key] = (self.clock() + self.ttl_s, value)
            self.kept.move_to_end(key)
            while len(self.kept) > self.entries:
                self.kept.popitem(last=False)


@dataclass(frozen=True)
class Caches:
    """What a replica remembers. Every key names the versions that its value depends on; nothing personal is kept.

    Entries: an embedding is d floats; a candidate list 500 rows (6 kB); a response about 10 kB.
    """

    embedding: Cache = field(default_factory=lambda: Cache(10_000, 24 * 3600.0))
    candidates: Cache = field(default_factory=lambda: Cache(2_000, 3600.0))
    response: Cache = field(default_factory=lambda: Cache(2_000, 3600.0))

    def __iter__(self) -> Any:
        return iter((("embedding", self.embedding), ("candidates", self.candidates), ("response", self.response)))
