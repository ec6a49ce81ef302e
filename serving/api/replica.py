"""One serving process: slots, worker threads, caches, limits and metrics, opened and closed by the lifespan."""

import asyncio
import contextvars
import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np

from serving.api.admission import AdmissionLimit, overloaded
from serving.api.auth import Access, read_keys
from serving.api.errors import ApiError
from serving.api.metrics import RequestMetrics
from serving.api.open_connections import share_of
from serving.api.upload_places import UploadPlaces
from serving.cluster.client import ShardClient
from serving.cluster.fleet import RESOLVE_S, Fleet, addresses_of
from serving.cluster.gateway import GatewayOpener
from serving.cluster.metrics import GatewayMetrics
from serving.contract.image_limits import CostlyImage, ImageLimits
from serving.contract.runtimes import Runtime, runtime
from serving.index.collection import Endpoint
from serving.invalid_request import InvalidRequest
from serving.ranking.column_changes import with_change
from serving.ranking.filters import FilterError
from serving.ranking.profiles import NoProfiles, Profiles, RedisProfiles
from serving.search import pipeline as queries
from serving.search.caches import Caches
from serving.search.costly_images import MAX_COST, CostlyImages
from serving.search.image_fetch import Fetcher
from serving.search.live_recall import LiveRecall
from serving.search.metrics import SearchMetrics
from serving.search.pipeline import SearchDeps
from serving.search.query import Query
from serving.search.samples import Samples
from serving.search.schemas import SearchAnswer
from serving.settings import ServingSettings
from serving.telemetry.metrics import Metrics
from serving.telemetry.timing import Deadline, DeadlinePassed, Timings
from serving.telemetry.tracing import make_tracing
from serving.versions.encoder_server import EncoderServer
from serving.versions.metrics import SlotMetrics
from serving.versions.release import Release
from serving.versions.repeating_threads import LOADER_POLL_S, Poller
from serving.versions.slots import Opener, ReleaseOpener, Slots
from serving.versions.version_source import VersionSource

FETCHERS = 4
"""Concurrent fetches of photos by URL; up to `queue` more wait, and any beyond are answered 503."""
COSTLY_QUEUE = 16
"""Costly images decoded or waiting for it; more are answered 503."""
PROFILE_TIMEOUT_S = 0.05
TOO_LATE = "the answer was not ready in the time this request had; try again, or ask for less"


class Replica:
    """The state of a serving process. Between `start` and `close` it follows the aliases and answers searches."""

    def __init__(self, settings: ServingSettings, source: VersionSource, fetcher: Fetcher | None = None) -> None:
        self.settings, self.draining = settings, False
        self.metrics = Metrics()
        self.request_metrics = RequestMetrics(self.metrics)
        self.fleet = _fleet(settings)
        self.slots: Slots[Release] = Slots(source, opener=self._opener(source))
        self.access = Access(settings.admin_token, read_keys(settings.api_keys))
        self.tracing = make_tracing(settings.otel_endpoint)
        self.limits = ImageLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_whole_pixels=settings.max_whole_pixels,
            max_scans=settings.max_scans,
            max_cost=MAX_COST,
        )
        self.costly_images = CostlyImages(self.limits)
        samples = Samples(settings.sample_rate, settings.sample_kept, settings.sample_photos)
        self.deps = SearchDeps(self.limits, _caches(settings), _profiles(settings), samples)
        self.live_recall = LiveRecall(samples, lambda: self.slots.live)
        self.slot_metrics = SlotMetrics(self.metrics, self.slots)
        self.search_metrics = SearchMetrics(self.metrics, self.deps, self.live_recall)
        busy = self.metrics.gauge("vitrine_busy", "Searches being worked on or waiting")
        self.metrics.before_scrape(lambda: busy.set(self.waiting))
        self.fetcher = fetcher or Fetcher(settings.query_hosts, settings.max_image_bytes)
        self.workers = ThreadPoolExecutor(settings.workers, "search")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.waiting, self.lock = 0, threading.Lock()
        self.waiting_by_address: Counter[str] = Counter()
        self.costly = ThreadPoolExecutor(1, "costly")
        self.uploads = UploadPlaces(settings.uploads, settings.address_share)
        self.costly_places = AdmissionLimit(COSTLY_QUEUE, "large images are waiting to be decoded", settings.address_share)
        self.fetches = AdmissionLimit(
            FETCHERS + settings.queue, "photos are being fetched by their addresses", settings.address_share
        )
        calls: dict[str, tuple[Callable[[], object], float | None]] = {
            "follow": (self.slots.follow, settings.poll_s),
            "load": (self.slots.load_next, LOADER_POLL_S),
            "recall": (self.live_recall.step, None),
        }
        if self.fleet is not None:
            calls["shards"] = (self.fleet.follow, RESOLVE_S)
        self.poller = Poller(calls)

    def start(self) -> None:
        self.poller.start()

    def close(self) -> None:
        self.poller.close()
        if self.fleet is not None:
            self.fleet.close()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.fetchers.shutdown(wait=False, cancel_futures=True)
        self.costly.shutdown(wait=False, cancel_futures=True)
        self.costly_images.close()
        self.deps.caches.close()
        self.tracing.close()

    def deadline(self, timeout_ms: str | None = None) -> Deadline:
        """The deadline of a request that starts now; `timeout_ms` may shorten the setting's, never extend it.

        Raises InvalidRequest where `timeout_ms` is not a number of milliseconds.
        """
        limit_s = self.settings.deadline_s
        return Deadline.after(limit_s if timeout_ms is None else min(limit_s, _timeout_s(timeout_ms)))

    async def search(
        self, release: Release, query: Query, timings: Timings, request_id: str, sampled: bool = False, address: str = ""
    ) -> SearchAnswer:
        """Runs a query on a worker thread, a costly photo decoded beforehand. Raises ApiError(503) when too many wait, of all or of
        this address; DeadlinePassed; and what a search raises.

        A search whose deadline passes or whose caller is cancelled is dropped while it waits, or ends before its next phase.
        """
        places = self.settings.workers + self.settings.queue
        if self.waiting >= places or self.waiting_by_address[address] >= share_of(places, self.settings.address_share):
            raise overloaded("searches are waiting")
        self.waiting_by_address[address] += 1
        try:
            async with asyncio.timeout(timings.deadline.left_s()):
                with suppress(CostlyImage):
                    return await self._submit(release, query, timings, request_id, sampled)
                decoded = replace(query, pixels=await self._decode_costly(release, query, timings, address))
                return await self._submit(release, decoded, timings, request_id, sampled)
        except TimeoutError:
            raise DeadlinePassed(TOO_LATE) from None
        finally:
            self.waiting_by_address[address] -= 1
            if not self.waiting_by_address[address]:
                del self.waiting_by_address[address]

    async def _decode_costly(self, release: Release, query: Query, timings: Timings, address: str) -> np.ndarray:
        """The pixels of a costly photo, decoded in the child process. Raises ApiError(503), ImageRejected or DeadlinePassed."""

        def decode() -> np.ndarray:
            with timings.phase("decode"):
                return self.costly_images.decode(query.photo_bytes(), release.preprocess, query.box, timings.deadline)

        with self.costly_places.admit(address):
            return await asyncio.get_running_loop().run_in_executor(self.costly, decode)

    def _submit(
        self, release: Release, query: Query, timings: Timings, request_id: str, sampled: bool
    ) -> asyncio.Future[SearchAnswer]:
        """Submits a search to the workers; it counts in `waiting` until it is done.

        Only the caller's `await` holds the future: a traceback that refers to its own future is a reference cycle, which would keep
        a retired version in memory.
        """
        context = contextvars.copy_context()
        job = self.workers.submit(context.run, queries.search, release, query, self.deps, timings, request_id, sampled)
        with self.lock:
            self.waiting += 1
        job.add_done_callback(self._count_down)
        return asyncio.wrap_future(job)

    def _count_down(self, job: Future[SearchAnswer]) -> None:
        with self.lock:
            self.waiting -= 1

    async def fetch(self, url: str, timings: Timings, address: str = "") -> bytes:
        """Fetches a photo by URL outside the search workers. Raises ApiError(503), ImageRejected or DeadlinePassed."""

        def fetch() -> bytes:
            with timings.phase("fetch"):
                return self.fetcher.fetch(url)

        try:
            with self.fetches.admit(address):
                async with asyncio.timeout(timings.deadline.left_s()):
                    return await asyncio.get_running_loop().run_in_executor(self.fetchers, fetch)
        except TimeoutError:
            raise DeadlinePassed(TOO_LATE) from None

    def release(self, slot: str = "") -> Release:
        """The live release, or a slot's. Raises ApiError(503) when there is none."""
        found = self.slots.get(slot)
        if found is None:
            what = f"slot {slot} holds no version that is ready" if slot else self.slots.not_live_reason()
            raise ApiError(503, what, "not_ready", {"Retry-After": "5"})
        return found

    def with_change(self, error: FilterError, release: Release) -> FilterError:
        """The error of a filter that `release` refuses, with what its column is in the version of the other slot."""
        others = [s.release for s in self.slots.slots.values() if s.release is not None and s.release is not release]
        for other in others:
            error = with_change(error, release.version, release.searcher.features, other.version, other.searcher.features)
        return error

    def describe(self) -> dict[str, object]:
        """The process's part of /v1/version: role, notice and shards."""
        state: dict[str, object] = {"role": self.settings.role, "notice": self.settings.notice}
        return state if self.fleet is None else state | {"shards": self.fleet.describe(), "shard_map_error": self.fleet.error}

    def _opener(self, source: VersionSource) -> Opener[Release]:
        settings = self.settings
        encoder_runtime = _encoder_runtime(settings)
        if self.fleet is None:
            endpoint = Endpoint(settings.engine_address, settings.engine_token, settings.engine_timeout_s)
            return ReleaseOpener(source, settings.threads, encoder_runtime, endpoint)
        client = ShardClient(self.fleet, GatewayMetrics(self.metrics, self.fleet), settings.shard_timeout_s, settings.hedges)
        return GatewayOpener(source, self.fleet, client, settings.threads, settings.shard_patience_s, encoder_runtime)


def _timeout_s(timeout_ms: str) -> float:
    with suppress(ValueError):
        if 0 <= (timeout_s := float(timeout_ms) / 1e3) < math.inf:
            return timeout_s
    raise InvalidRequest(f"X-Timeout-Ms: {timeout_ms!r} is no number of milliseconds, such as 250 or 0.5")


def _encoder_runtime(settings: ServingSettings) -> Runtime:
    """What encodes photos: this process, or a server. Raises ValueError for a name or an address that cannot be."""
    if not settings.encoder_server:
        return runtime(settings.encoder_runtime)
    return EncoderServer(settings.encoder_server, settings.encoder_address, settings.encoder_timeout_s)


def _fleet(settings: ServingSettings) -> Fleet | None:
    """The shard fleet of a gateway; None in other roles. Raises ValueError where no shards are configured."""
    if settings.role != "gateway":
        return None
    if not settings.shard_urls and not settings.shard_map:
        raise ValueError("VITRINE_ROLE=gateway needs to know its shards: VITRINE_SHARD_URLS or VITRINE_SHARD_MAP")
    return Fleet(addresses_of(settings.shard_urls, settings.shard_map), settings.probe_s)


def _caches(settings: ServingSettings) -> Caches:
    if not settings.cache_url:
        return Caches()
    from serving.search.shared_cache import shared_caches

    return shared_caches(settings.cache_url)


def _profiles(settings: ServingSettings) -> Profiles:
    if not settings.profiles_url:
        return NoProfiles()
    from serving.search.shared_cache import connect

    return RedisProfiles(connect(settings.profiles_url, PROFILE_TIMEOUT_S))
