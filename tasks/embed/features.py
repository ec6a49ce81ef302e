"""The feature store: features in Redis per index version, and an atomic switch of the live version.

Keys: `features:<version>:<product key>` (a hash of columns), `features:<version>:_complete` (how many), and `features:live`, the
version that readers use. A version becomes visible only by the switch, which is one SET; older versions end by their TTL.

A version may lie on a base: then it holds only what differs from it (`_base` names it, `_keys` says what is there, and a product
that is gone has the one field `_gone`), so that an hourly version costs what changed. Several versions may share a base.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from serving.contract.palette import PALETTE
from tasks.errors import ServiceAway, VitrineError
from tasks.progress import Progress

PIPELINE = 2_000
"""Commands per round trip: larger ones gain little and hold Redis's reply buffer."""
TIMEOUT_S = 10.0
"""For one answer. Without it a server that is silent, rather than away, would hold a step until its execution timeout."""
TTL_S = 3 * 24 * 3600
"""How long a version outlives its successor: three nights, so that a rollback finds its features."""
LIVE = "features:live"
GONE = "_gone"
LEFT_OUT = ("key", PALETTE)
"""Columns that are not stored: the key is in the name, and a palette is bytes that only the ranker reads, from its own segment."""


class FeatureStore:
    """Features by product key in one Redis database."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis  # a redis.Redis that decodes its answers; redis-py's own types fit neither its sync nor its async use

    @classmethod
    def connect(cls, url: str) -> "FeatureStore":
        """Connects to a redis:// url. Raises VitrineError when nothing responds."""
        import redis

        client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        try:
            client.ping()
        except redis.RedisError as error:
            raise ServiceAway(f"the feature store does not answer: {error}; start Redis or clear VITRINE_REDIS_URL") from None
        return cls(client)

    def load(self, version: str, batches: Iterable[pa.RecordBatch], total: int, base: str = "", gone: Sequence[int] = ()) -> int:
        """Writes features (batches with an int64 column `key`) as `version`; returns the number of products.

        With `base`, the rows are those that differ from it and `gone` the keys of products that it has and this version has not.
        Not visible until `switch`. Loading a version that is complete writes nothing; one that was interrupted is written again.
        """
        if (done := self.loaded_count(version)) is not None:
            return done
        count = 0
        with Progress("feature store", total, "products") as progress:
            for batch in batches:
                rows = batch.to_pylist()
                for start in range(0, len(rows), PIPELINE):
                    self._write(version, rows[start : start + PIPELINE], listed=bool(base))
                count += len(rows)
                progress.set(count)
            for start in range(0, len(gone), PIPELINE):
                self._write(version, [{"key": key, GONE: True} for key in gone[start : start + PIPELINE]], listed=True)
        if base:
            self.redis.set(f"features:{version}:_base", base, ex=TTL_S)
        self.redis.set(f"features:{version}:_complete", count, ex=TTL_S)
        return count

    def refresh(self, version: str, rows: Iterable[dict[str, Any]]) -> int:
        """Updates volatile fields (price, in_stock, popularity, …) of products that `version` holds; skips others."""
        wanted = list(rows)
        base = self._base(version)
        written = 0
        for start in range(0, len(wanted), PIPELINE):
            piece = wanted[start : start + PIPELINE]
            pipe = self.redis.pipeline(transaction=False)
            for row in piece:
                pipe.hlen(_name(version, row["key"]))
                pipe.hexists(_name(version, row["key"]), GONE)
                pipe.hlen(_name(base, row["key"]))
            told = pipe.execute()
            pipe = self.redis.pipeline(transaction=False)
            for row, own, gone, below in zip(piece, told[0::3], told[1::3], told[2::3], strict=True):
                if not gone and (own or (base and below)):
                    pipe.hset(_name(version if own else base, row["key"]), mapping=_encoded(row))
                    written += 1
            pipe.execute()
        return written

    def switch(self, version: str) -> str | None:
        """Makes `version` live atomically and expires the one before by TTL; returns the name of the latter.

        Raises VitrineError when the version was not loaded whole. A version that goes live again is kept again.
        """
        base = self._base(version)
        if self.loaded_count(version) is None or (base and self.loaded_count(base) is None):
            raise VitrineError(f"features of version {version} are not complete; load them before switching")
        for layer in (base, version):
            if layer:
                self._expire(layer, None)
        before = self.redis.set(LIVE, version, get=True)
        if before and before != version:
            for layer in {before, self._base(before)} - {version, base, ""}:
                self._expire(layer, TTL_S)
        return before

    def live(self) -> str | None:
        return self.redis.get(LIVE)

    def loaded_count(self, version: str) -> int | None:
        """Number of products of a completely loaded version."""
        count = self.redis.get(f"features:{version}:_complete")
        return None if count is None else int(count)

    def read(self, version: str, keys: Sequence[int]) -> list[dict[str, Any] | None]:
        """Features of many products in order, in one round trip (two with a base); None for a missing product."""
        found = self._hashes(version, keys)
        base = self._base(version)
        lacking = [n for n, one in enumerate(found) if not one] if base else []
        for n, below in zip(lacking, self._hashes(base, [keys[n] for n in lacking]), strict=True):
            found[n] = below
        return [{n: json.loads(v) for n, v in one.items()} if one and GONE not in one else None for one in found]

    def _hashes(self, layer: str, keys: Sequence[int]) -> list[dict[str, str]]:
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(_name(layer, key))
        return pipe.execute()

    def _base(self, version: str) -> str:
        return self.redis.get(f"features:{version}:_base") or ""

    def _write(self, version: str, rows: list[dict[str, Any]], listed: bool) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for row in rows:
            name = _name(version, row["key"])
            pipe.delete(name)
            pipe.hset(name, mapping=_encoded(row))
            pipe.expire(name, TTL_S)  # a load that is never finished cleans up after itself
        if listed:
            pipe.sadd(f"features:{version}:_keys", *(row["key"] for row in rows))
            pipe.expire(f"features:{version}:_keys", TTL_S)
        pipe.execute()

    def _expire(self, version: str, ttl_s: int | None) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for name in self._names(version):
            if ttl_s is None:
                pipe.persist(name)
            else:
                pipe.expire(name, ttl_s)
            if len(pipe) >= PIPELINE:
                pipe.execute()
        pipe.execute()

    def _names(self, version: str) -> Iterator[str]:
        """All keys of a version: from its key list if it has one; a base is scanned for."""
        if not self._base(version):
            yield from self.redis.scan_iter(f"features:{version}:*", count=PIPELINE)
            return
        yield from (f"features:{version}:{name}" for name in ("_base", "_complete", "_keys"))
        yield from (_name(version, key) for key in self.redis.sscan_iter(f"features:{version}:_keys", count=PIPELINE))


def _name(version: str, key: int | str) -> str:
    return f"features:{version}:{key}"


def _encoded(row: dict[str, Any]) -> dict[str, str]:
    return {n: json.dumps(v, default=str) for n, v in row.items() if n not in LEFT_OUT} or {"_": "null"}
