"""The caches of a replica: in process by default, in a shared Redis by setting. A failed look-up is a miss."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cachetools import TTLCache

from serving.search.schemas import SearchAnswer

EMBEDDING_S, CANDIDATES_S, RESPONSE_S = 24 * 3600.0, 3600.0, 3600.0


def accept_any(value: Any) -> bool:
    """Accepts any value; the default check of a look-up."""
    return True


class Cache(Protocol):
    """A cache of values by key. `hits`, `misses` and `errors` count look-ups; a failed look-up is a miss and an error."""

    hits: int
    misses: int
    errors: int

    def get(self, key: str, fits: Callable[[Any], bool] = accept_any) -> Any:
        """The value of a key, or None. In a shared cache, a value that does not pass `fits` is a failed look-up."""
        ...

    def put(self, key: str, value: Any) -> None: ...

    def close(self) -> None: ...


class LocalCache:
    """An in-process LRU cache of at most `entries` values with a time to live of `ttl_s` seconds. Thread-safe.

    `write` and `read` convert values to a smaller stored form and back.
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
    """Caches of embeddings, candidates and responses. Every key names the versions its value depends on; nothing personal is cached.

    Entries: an embedding is d floats; a candidate list 500 rows (6 kB); a response its JSON, 5 kB (35 kB as a model, by
    tracemalloc).
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
