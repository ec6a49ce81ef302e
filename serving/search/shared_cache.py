"""Caches in a Redis shared by several replicas. Values are bytes of a fixed layout, never pickles."""

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.contract.palette import NAMES
from serving.index.searcher import Neighbors
from serving.search.caches import CANDIDATES_S, EMBEDDING_S, RESPONSE_S, Caches, accept_any
from serving.search.schemas import SearchAnswer
from serving.versions.release import EncodedQuery

TIMEOUT_S = 0.1
"""Timeout of a Redis call: a slower cache costs more than it saves."""
AWAY_S = 1.0
"""After an error Redis is skipped this long, so that not every query waits for it."""
PREFIX = "vitrine:1"


@dataclass(frozen=True)
class Layout:
    """Serialisation of one kind of value. `read` raises ValueError for invalid bytes."""

    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def write_query(query: EncodedQuery) -> bytes:
    """uint32 d, d float32, then 13 palette bytes or none."""
    colours = b"" if query.colours is None else query.colours.tobytes()
    return struct.pack("<I", len(query.vector)) + query.vector.astype("<f4").tobytes() + colours


def read_query(data: bytes) -> EncodedQuery:
    (d,) = _header(data)
    rest = data[4 + 4 * d :]
    if len(data) < 4 + 4 * d or len(rest) not in (0, len(NAMES)):
        raise ValueError(f"{len(data)} bytes are no query of dimension {d}")
    return EncodedQuery(np.frombuffer(data, "<f4", d, 4), np.frombuffer(rest, np.uint8) if rest else None)


def write_candidates(found: Neighbors) -> bytes:
    """uint32 k, k float32 similarities, k int64 rows, and k int16 pictures where products have several, of one query."""
    similarity, rows = found.similarity[0].astype("<f4"), found.rows[0].astype("<i8")
    pictures = b"" if found.pictures is None else found.pictures[0].astype("<i2").tobytes()
    return struct.pack("<I", len(rows)) + similarity.tobytes() + rows.tobytes() + pictures


def read_candidates(data: bytes) -> Neighbors:
    (k,) = _header(data)
    if len(data) not in (4 + 12 * k, 4 + 14 * k):
        raise ValueError(f"{len(data)} bytes are no list of {k} candidates")
    pictures = np.frombuffer(data, "<i2", k, 4 + 12 * k)[None] if len(data) > 4 + 12 * k else None
    return Neighbors(np.frombuffer(data, "<f4", k, 4)[None], np.frombuffer(data, "<i8", k, 4 + 4 * k)[None], pictures=pictures)


def _header(data: bytes) -> tuple[int]:
    if len(data) < 4:
        raise ValueError(f"{len(data)} bytes are no value of this cache")
    return struct.unpack_from("<I", data)


QUERY_LAYOUT = Layout(write_query, read_query)
CANDIDATES_LAYOUT = Layout(write_candidates, read_candidates)
ANSWER_LAYOUT = Layout(lambda answer: answer.model_dump_json().encode(), SearchAnswer.model_validate_json)


class RedisCache:
    """A cache of one layout under the keys `<prefix>:<name>:…`, with a time to live of `ttl_s` seconds.

    Redis unavailable or slow, and values that are invalid or do not pass the check, count as a miss and an error.
    """

    def __init__(self, redis: Any, name: str, ttl_s: float, layout: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self.redis, self.name, self.ttl_s, self.layout, self.clock = redis, name, ttl_s, layout, clock
        self.hits = self.misses = self.errors = 0
        self.away_until = 0.0
        self.lock = threading.Lock()

    def get(self, key: str, fits: Callable[[Any], bool] = accept_any) -> Any:
        data = self._call(lambda: self.redis.get(self._key(key)))
        found = None if data is None else self._read(data, fits)
        self._count(int(found is not None), int(found is None), int(found is None and data is not None))
        return found

    def put(self, key: str, value: Any) -> None:
        data = self.layout.write(value)
        self._call(lambda: self.redis.set(self._key(key), data, px=round(1e3 * self.ttl_s)))

    def close(self) -> None:
        self.redis.close()

    def _read(self, data: bytes, fits: Callable[[Any], bool]) -> Any:
        """Parses a value; None where it is invalid or does not pass the check."""
        try:
            value = self.layout.read(data)
        except (ValueError, struct.error):
            return None
        return value if fits(value) else None

    def _key(self, key: str) -> str:
        return f"{PREFIX}:{self.name}:{key}"

    def _call(self, call: Callable[[], Any]) -> Any:
        from redis import RedisError

        if self.clock() < self.away_until:
            return None
        try:
            return call()
        except (RedisError, OSError):
            self.away_until = self.clock() + AWAY_S
            self._count(errors=1)
            return None

    def _count(self, hits: int = 0, misses: int = 0, errors: int = 0) -> None:
        with self.lock:
            self.hits, self.misses, self.errors = self.hits + hits, self.misses + misses, self.errors + errors


def connect(url: str, timeout_s: float = TIMEOUT_S) -> Any:
    """A Redis client without retries; connects lazily."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def shared_caches(url: str) -> Caches:
    """The three caches in the Redis at a redis:// URL."""
    redis = connect(url)
    return Caches(
        RedisCache(redis, "embedding", EMBEDDING_S, QUERY_LAYOUT),
        RedisCache(redis, "candidates", CANDIDATES_S, CANDIDATES_LAYOUT),
        RedisCache(redis, "response", RESPONSE_S, ANSWER_LAYOUT),
    )
