"""One shard process: holds shards of the versions in both slots and answers gateways' searches by version and digest."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import ValidationError

from serving.cluster.metrics import ShardMetrics
from serving.cluster.shard_set import ShardSearcher, ShardSet, ShardSetOpener
from serving.cluster.wire import pack, unpack
from serving.contract.addresses import error_line
from serving.invalid_request import InvalidRequest
from serving.ranking.filters import Filter
from serving.settings import ServingSettings
from serving.telemetry.metrics import Metrics
from serving.versions.metrics import SlotMetrics
from serving.versions.repeating_threads import LOADER_POLL_S, Poller
from serving.versions.slots import Slots
from serving.versions.version_source import VersionSource

log = logging.getLogger(__name__)

LINGER_S = 10.0
"""A version dropped by both slots is kept this long after its last request, for gateways that have not flipped yet."""
MAX_QUERIES, MAX_K = 64, 4096
MAX_LEFT_MS = 1e9


class ShardError(Exception):
    """An error answered to a gateway: HTTP status and one sentence.

    422 is for what the shopper asked, who is told; anything else is between the two processes, and the gateway asks another one.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class ShardServer:
    """Serves its shards of the versions in both slots, between `start` and `close`."""

    def __init__(self, settings: ServingSettings, source: VersionSource, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock, self.draining = settings, clock, False
        self.shards = settings.shard_numbers()
        self.slots: Slots[ShardSet] = Slots(source, opener=ShardSetOpener(source, self.shards, settings.threads))
        self.metrics = Metrics()
        self.shard_metrics = ShardMetrics(self.metrics)
        self.slot_metrics = SlotMetrics(self.metrics, self.slots)
        self.pool = ThreadPoolExecutor(settings.workers, "shard")
        self.waiting = 0
        self.recent: dict[str, tuple[ShardSet, float]] = {}
        self.lock = threading.Lock()
        self.poller = Poller(
            {"follow": (self.follow, settings.poll_s), "load": (self.slots.load_next, LOADER_POLL_S)}
        )  # fmt: skip

    def start(self) -> None:
        self.poller.start()

    def close(self) -> None:
        self.poller.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def follow(self) -> None:
        """Follows the aliases, and forgets versions without a request within LINGER_S."""
        self.slots.follow()
        with self.lock:
            for version, (_, at) in list(self.recent.items()):
                if self.clock() - at > LINGER_S:
                    del self.recent[version]

    def describe(self) -> dict[str, Any]:
        """The process's part of /v1/version: role and shards."""
        return {"role": "shard", "shards": self.shards}

    def state(self) -> dict[str, Any]:
        """Which shards this process has, and which versions of them are ready."""
        versions: dict[str, dict[str, str]] = {}
        with self.lock:
            recent = [shard_set for shard_set, _ in self.recent.values()]
        for shard_set in [*recent, *self.slots.releases()]:
            versions[shard_set.version] = {"state": "ready", "digest": shard_set.digest, "reason": ""}
        for slot in self.slots.slots.values():
            if slot.version and slot.version not in versions:
                versions[slot.version] = {"state": slot.state, "digest": "", "reason": slot.reason}
        return {"shards": self.shards, "versions": versions, "error": self.slots.error}

    async def search(self, body: bytes) -> bytes:
        """Answers a packed search of one shard of the named version. Raises ShardError."""
        header, xq = _unpacked(body, "query")
        shard_set, shard = self._lookup(header)
        try:
            wanted = Filter.model_validate(header["filter"]) if header.get("filter") is not None else None
            k = int(header["k"])
        except ValidationError as error:
            raise ShardError(422, f"filter: {error_line(error)}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ShardError(400, f"the question is not one: {error_line(error)}") from None
        dim = shard.searcher.dim
        if not (1 <= k <= MAX_K and xq.shape[1:] == (dim,) and 1 <= len(xq) <= MAX_QUERIES and _are_numbers(xq)):
            raise ShardError(
                400,
                f"{xq.shape} queries and k {k}, where at most {MAX_QUERIES} of {dim} numbers and 1 to {MAX_K} are expected",
            )

        def work() -> bytes:
            began = time.perf_counter()
            measure, words = header.get("measure"), bool(header.get("words"))
            found = shard.measure(xq, k, measure == "exact", words) if measure else shard.search(xq, k, wanted, words)
            took_s = time.perf_counter() - began
            self.shard_metrics.count(str(header["shard"]), shard_set.version, took_s)
            columns = {"similarity": found.similarity, "row": found.rows}
            if shard_set.manifest.several_pictures:
                columns["picture"] = np.zeros_like(found.rows) if found.pictures is None else found.pictures
            return pack({"digest": shard_set.digest, "ms": round(1e3 * took_s, 3)}, **columns)

        return await self._work(work, header)

    async def vectors(self, body: bytes) -> bytes:
        """Answers a packed request for stored vectors of rows. Raises ShardError."""
        header, rows = _unpacked(body, "row")
        shard_set, shard = self._lookup(header)
        if rows.dtype.kind != "i" or rows.ndim != 1 or not 1 <= len(rows) <= MAX_QUERIES:
            raise ShardError(400, f"1 to {MAX_QUERIES} rows are expected")
        return await self._work(lambda: pack({"digest": shard_set.digest}, vector=shard.vectors(rows)), header)

    def _lookup(self, header: dict[str, Any]) -> tuple[ShardSet, ShardSearcher]:
        """The shard set and shard that a request names by version and digest. Raises ShardError(409) where it is not held."""
        version, digest, shard = header.get("version"), header.get("digest"), header.get("shard")
        with self.lock:
            recent = [shard_set for shard_set, _ in self.recent.values()]
        shard_set = next((p for p in [*self.slots.releases(), *recent] if p.version == version and p.digest == digest), None)
        if shard_set is None:
            raise ShardError(409, f"this process does not hold version {version} ({digest}) ready")
        if not isinstance(shard, int) or shard not in shard_set.shards:
            raise ShardError(409, f"this process holds the shards {self.shards}, not shard {shard}")
        with self.lock:
            self.recent[shard_set.version] = (shard_set, self.clock())
        return shard_set, shard_set.shards[shard]

    async def _work(self, call: Callable[[], bytes], header: dict[str, Any]) -> bytes:
        """Runs a call in the pool. Raises ShardError: 503 when too many wait, 504 when its time is over before it starts, 400, 422."""
        if self.waiting >= self.pool._max_workers + self.settings.queue:
            raise ShardError(503, "too many questions are waiting at this shard")
        left_ms = header.get("left_ms") or 1e3 * self.settings.deadline_s
        if not isinstance(left_ms, int | float) or not abs(left_ms) < MAX_LEFT_MS:
            raise ShardError(400, "left_ms is no number of milliseconds")
        latest = time.monotonic() + left_ms / 1e3

        def in_time() -> bytes:
            if time.monotonic() > latest:
                raise ShardError(504, "the question's time was over when its turn came")
            return call()

        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, in_time)
        except InvalidRequest as error:
            raise ShardError(422, str(error)) from None
        finally:
            self.waiting -= 1
            self.shard_metrics.busy.set(self.waiting)


def _are_numbers(xq: np.ndarray) -> bool:
    return xq.dtype.kind == "f" and bool(np.isfinite(xq).all())


def _unpacked(body: bytes, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The header and the one array of a packed request. Raises ShardError."""
    try:
        header, arrays = unpack(body)
    except ValueError as error:
        raise ShardError(400, str(error)) from None
    if list(arrays) != [name]:
        raise ShardError(400, f"the arrays {sorted(arrays)}, where {name!r} alone is expected")
    return header, arrays[name]
