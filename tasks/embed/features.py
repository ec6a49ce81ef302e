"""The feature store: every product's features in Redis under the index version they belong to, and one name that switches.

Keys: `features:<version>:<product key>` (a hash of columns), `features:<version>:_complete` (how many), and `features:live`, the
version that readers use. A version becomes visible only by the switch, which is one SET; older versions end by their TTL.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from tasks.errors import VitrineError
from tasks.progress import Progress

PIPELINE = 2_000
"""Commands per round trip: larger ones gain little and hold Redis's reply buffer."""
TTL_S = 3 * 24 * 3600
"""How long a version outlives its successor: three nights, so that a rollback finds its features."""
LIVE = "features:live"


class FeatureStore:
    """Features by product key in one Redis database."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis  # a redis.Redis that decodes its answers; redis-py's own types fit neither its sync nor its async use

    @classmethod
    def connect(cls, url: str) -> "FeatureStore":
        """The store at a redis:// url. Raises VitrineError when nothing answers there."""
        import redis

        client = redis.Redis.from_url(url, decode_responses=True)
        try:
            client.ping()
        except redis.RedisError as error:
            raise VitrineError(f"the feature store does not answer: {error}; start Redis or clear VITRINE_REDIS_URL") from None
        return cls(client)

    def load(self, version: str, batches: Iterable[pa.RecordBatch], total: int) -> int:
        """Writes all products' features (batches with an int64 column `key`) as `version`; gives how many.

        Not visible until `switch`. Loading a version that is complete writes nothing; one that was interrupted is written again.
        """
        if (done := self.complete(version)) is not None:
            return done
        count = 0
        with Progress("feature store", total, "products") as progress:
            for batch in batches:
                rows = batch.to_pylist()
                for start in range(0, len(rows), PIPELINE):
                    self._write(version, rows[start : start + PIPELINE])
                count += len(rows)
                progress.set(count)
        self.redis.set(f"features:{version}:_complete", count)
        return count

    def refresh(self, version: str, rows: Iterable[dict[str, Any]]) -> int:
        """Sets volatile fields (price, in_stock, popularity, …) of products ({key, …}) that `version` holds; others are left out."""
        wanted = list(rows)
        written = 0
        for start in range(0, len(wanted), PIPELINE):
            piece = wanted[start : start + PIPELINE]
            pipe = self.redis.pipeline(transaction=False)
            for row in piece:
                pipe.exists(_name(version, row["key"]))
            known = [row for row, there in zip(piece, pipe.execute(), strict=True) if there]
            pipe = self.redis.pipeline(transaction=False)
            for row in known:
                pipe.hset(_name(version, row["key"]), mapping=_encoded(row))
            pipe.execute()
            written += len(known)
        return written

    def switch(self, version: str) -> str | None:
        """Makes `version` the live one, in one step, and lets the one before end by its TTL; gives that one's name.

        Raises VitrineError when the version was not loaded whole. A version that goes live again is kept again.
        """
        count = self.complete(version)
        if count is None:
            raise VitrineError(f"features of version {version} are not complete; load them before switching")
        self._expire(version, None)
        before = self.redis.set(LIVE, version, get=True)
        if before and before != version:
            self._expire(before, TTL_S)
        return before

    def live(self) -> str | None:
        return self.redis.get(LIVE)

    def complete(self, version: str) -> int | None:
        """How many products a version holds, once it is loaded whole."""
        count = self.redis.get(f"features:{version}:_complete")
        return None if count is None else int(count)

    def read(self, version: str, keys: Sequence[int]) -> list[dict[str, Any] | None]:
        """Features of many products in one round trip, in their order; None for a product that is not there."""
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(_name(version, key))
        return [{n: json.loads(v) for n, v in found.items()} if found else None for found in pipe.execute()]

    def _write(self, version: str, rows: list[dict[str, Any]]) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for row in rows:
            name = _name(version, row["key"])
            pipe.delete(name)
            pipe.hset(name, mapping=_encoded(row))
            pipe.expire(name, TTL_S)  # a load that is never finished cleans up after itself
        pipe.execute()

    def _expire(self, version: str, ttl_s: int | None) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for name in self.redis.scan_iter(f"features:{version}:*", count=PIPELINE):
            if ttl_s is None:
                pipe.persist(name)
            else:
                pipe.expire(name, ttl_s)
            if len(pipe) >= PIPELINE:
                pipe.execute()
        pipe.execute()


def _name(version: str, key: int) -> str:
    return f"features:{version}:{key}"


def _encoded(row: dict[str, Any]) -> dict[str, str]:
    return {n: json.dumps(v, default=str) for n, v in row.items() if n != "key"} or {"_": "null"}
