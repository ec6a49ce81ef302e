"""What a replica remembers: in its own memory by default, in a Redis that replicas share by setting. A failure is a miss."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cachetools import TTLCache

from serving.search.schemas import SearchAnswer

EMBEDDING_S, CANDIDATES_S, RESPONSE_S = 24 * 3600.0, 3600.0, 3600.0


def accept_any(value: Any) -> bool:
    """Whether a value is one that was asked for: whatever it is."""
    return True


class Cache(Protocol):
    """Values by key. `hits`, `misses` and `errors` count look-ups; a look-up that failed is a miss and an error."""

    hits: int
    misses: int
    errors: int

    def get(self, key: str, fits: Callable[[Any], bool] = accept_any) -> Any:
        """The value kept under a key, or None. Where others write as well, what does not fit is a failed look-up."""
        ...

    def put(self, key: str, value: Any) -> None: ...

    def close(self) -> None: ...


class LocalCache:
    """At most `entries` values, each for at most `ttl_s` seconds; the least recently used goes first. Safe for several threads.

    `write` and `read` turn a value into what is kept and back, where the value itself would be large.
    """

    def __init__(
        self,
        entries: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[Any], Any] = lambda value: value,
        read: Callable[[Any], Any] = lambda kept: kept,
    ) -> None:
        self.values: TTLCache[str, Any] = TTLCache(entries, ttl_s, timer=clock)
        self.write, self.read = write, read
        self.lock = threading.Lock()
        self.hits = self.misses = self.errors = 0

    def get(self, key: str, fits: Callable[[Any], bool] = accept_any) -> Any:
        with self.lock:
            value = self.values.get(key)
            self.hits, self.misses = self.hits + (value is not None), self.misses + (value is None)
        return None if value is None else self.read(value)

    def put(self, key: str, value: Any) -> None:
        written = self.write(value)
        with self.lock:
            self.values[key] = written

    def close(self) -> None:
        with self.lock:
            self.values.clear()


@dataclass(frozen=True)
class Caches:
    """The three of the document's table. Every key names the versions that its value depends on; nothing personal is kept.

    Entries: an embedding is d floats; a candidate list 500 rows (6 kB); a response is kept as its JSON, 5 kB: as models of
    20 products it takes 35 kB (tracemalloc).
    """

    embedding: Cache = field(default_factory=lambda: LocalCache(10_000, EMBEDDING_S))
    candidates: Cache = field(default_factory=lambda: LocalCache(2_000, CANDIDATES_S))
    response: Cache = field(
        default_factory=lambda: LocalCache(
            2_000, RESPONSE_S, write=SearchAnswer.model_dump_json, read=SearchAnswer.model_validate_json
        )
    )

    def __iter__(self) -> Iterator[tuple[str, Cache]]:
        return iter((("embedding", self.embedding), ("candidates", self.candidates), ("response", self.response)))

    def close(self) -> None:
        for _, cache in self:
            cache.close()
