"""What one serving process holds: its slots, its workers, its caches and its counters."""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from serving.access import Access, read_keys
from serving.cache import Caches
from serving.contract.preprocess import ImageLimits
from serving.contract.runtimes import runtime
from serving.fetching import Fetcher
from serving.following import LOADER_POLL_S, Following
from serving.live_recall import LiveRecall
from serving.metrics import Metrics
from serving.models import SearchAnswer
from serving.phases import DeadlinePassed, Phases
from serving.places import Places, overloaded
from serving.problems import Refused
from serving.profiles import NoProfiles, Profiles, RedisProfiles
from serving.queries import Means
from serving.release import Release
from serving.samples import Samples
from serving.settings import ServingSettings
from serving.shards.client import ShardClient
from serving.shards.fleet import RESOLVE_S, Fleet, addresses_of
from serving.shards.gateway import GatewayVersions
from serving.slots import Opener, Slots, WholeVersions
from serving.source import VersionSource
from serving.together import Search, Searching
from serving.tracing import tracing_to
from serving.workers import Workers

FETCHERS = 4
"""Photos that are fetched by their addresses at once; `queue` more may wait, and beyond that is 503."""
PROFILE_TIMEOUT_S = 0.05
TOO_LATE = "the answer was not ready in the time this request had; try again, or ask for less"


class Replica:
    """Opened by `start`, closed by `close`; in between it follows the aliases and works on searches."""

    def __init__(self, settings: ServingSettings, source: VersionSource, fetcher: Fetcher | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.fleet = _fleet(settings)
        self.slots: Slots[Release] = Slots(source, opener=self._opener(source))
        self.access = Access(settings.admin_token, read_keys(settings.api_keys))
        self.tracing = tracing_to(settings.otel_endpoint)
        self.limits = ImageLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_whole_pixels=settings.max_whole_pixels,
        )
        samples = Samples(settings.sample_rate, settings.sample_kept, settings.sample_photos)
        self.means = Means(self.limits, _caches(settings), _profiles(settings), samples)
        self.live_recall = LiveRecall(samples, lambda: self.slots.live)
        self.fetcher = fetcher or Fetcher(settings.query_hosts, settings.max_image_bytes)
        self.workers = Workers(settings.workers, settings.together, self._over)
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.waiting = 0
        self.uploads = Places(settings.uploads, "photos are on their way in")
        self.fetches = Places(FETCHERS + settings.queue, "photos are being fetched by their addresses")
        calls: dict[str, tuple[Callable[[], object], float | None]] = {
            "follow": (self.slots.follow, settings.poll_s),
            "load": (self.slots.load_next, LOADER_POLL_S),
            "recall": (self.live_recall.step, None),
        }
        if self.fleet is not None:
            calls["shards"] = (self.fleet.follow, RESOLVE_S)
        self.following = Following(calls)

    def start(self) -> None:
        self.following.start()

    def close(self) -> None:
        self.following.close()
        if self.fleet is not None:
            self.fleet.close()
        self.workers.close()
        self.fetchers.shutdown(wait=False, cancel_futures=True)
        self.means.caches.close()
        self.tracing.close()

    def latest(self, timeout_ms: str | None = None) -> float:
        """By when what is asked now is answered, as `Phases` has it; a caller may give less time than the setting does, never more.

        Raises ValueError where `timeout_ms` is no number of milliseconds.
        """
        limit_s = self.settings.deadline_s
        return time.monotonic() + (limit_s if timeout_ms is None else min(limit_s, _given_s(timeout_ms)))

    def begin(self, steps: Searching, phases: Phases) -> asyncio.Future[SearchAnswer]:
        """Has a search worked on. Raises Refused(503) when too many wait already.

        Its answer may be DeadlinePassed, and whatever else the search raises.
        """
        if self.waiting >= self.settings.workers * self.settings.together + self.settings.queue:
            raise overloaded("searches are waiting")
        loop = asyncio.get_running_loop()
        search = Search(steps, contextvars.copy_context(), loop.create_future())
        self.waiting += 1  # until it is over: one that is given up goes on until its next phase
        self.workers.submit(search)
        timer = loop.call_later(_left_s(phases), _give_up, search.future)
        search.future.add_done_callback(lambda _: timer.cancel())
        return search.future

    def _over(self, searches: list[Search]) -> None:
        """Tells those who asked: all of them at once, as every call into the loop wakes it."""
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            searches[0].future.get_loop().call_soon_threadsafe(self._tell, searches)

    def _tell(self, searches: list[Search]) -> None:
        for search in searches:
            self.waiting -= 1
            if search.future.done():
                search.error = None  # nobody asks for it, and its traceback holds this search and its version
                continue
            if search.answer is not None:
                search.future.set_result(search.answer)
            else:
                search.future.set_exception(search.error or RuntimeError("a search ended without an answer"))

    async def fetch(self, url: str, phases: Phases) -> bytes:
        """A photo by its address, while workers do other things. Raises Refused(503), ImageRejected or DeadlinePassed."""

        def fetch() -> bytes:
            with phases.phase("fetch"):
                return self.fetcher.fetch(url)

        try:
            with self.fetches:
                async with asyncio.timeout(_left_s(phases)):
                    return await asyncio.get_running_loop().run_in_executor(self.fetchers, fetch)
        except TimeoutError:
            raise DeadlinePassed(TOO_LATE) from None

    def release(self, slot: str = "") -> Release:
        """The release to answer with. Raises Refused(503) when there is none."""
        found = self.slots.get(slot)
        if found is None:
            what = f"slot {slot} holds no version that is ready" if slot else self.slots.nothing_live()
            raise Refused(503, what, "not_ready", {"Retry-After": "5"})
        return found

    def describe(self) -> dict[str, object]:
        """What this process is, besides its slots."""
        told: dict[str, object] = {"role": self.settings.role, "notice": self.settings.notice}
        return told if self.fleet is None else told | {"shards": self.fleet.describe(), "shard_map_error": self.fleet.error}

    def metrics_text(self) -> bytes:
        self.metrics.busy.set(self.waiting)
        return self.metrics.text(self.slots, self.means, self.live_recall.told(), self.fleet)

    def _opener(self, source: VersionSource) -> Opener[Release]:
        chosen = self.settings
        runs = runtime(chosen.encoder_runtime)
        if self.fleet is None:
            return WholeVersions(source, chosen.threads, runs, chosen.encode_batch)
        client = ShardClient(self.fleet, self.metrics, chosen.shard_timeout_s, chosen.hedges)
        return GatewayVersions(source, self.fleet, client, chosen.threads, chosen.shard_patience_s, runs, chosen.encode_batch)


def _given_s(timeout_ms: str) -> float:
    with suppress(ValueError):
        if 0 <= (given_s := float(timeout_ms) / 1e3) < math.inf:
            return given_s
    raise ValueError(f"X-Timeout-Ms: {timeout_ms!r} is no number of milliseconds, such as 250 or 0.5")


def _left_s(phases: Phases) -> float:
    assert phases.latest is not None
    return phases.latest - time.monotonic()


def _give_up(future: asyncio.Future[SearchAnswer]) -> None:
    if not future.done():
        future.set_exception(DeadlinePassed(TOO_LATE))


def _fleet(settings: ServingSettings) -> Fleet | None:
    """A gateway's shard processes; None in other roles. Raises ValueError where none are named."""
    if settings.role != "gateway":
        return None
    if not settings.shard_urls and not settings.shard_map:
        raise ValueError("VITRINE_ROLE=gateway needs to know its shards: VITRINE_SHARD_URLS or VITRINE_SHARD_MAP")
    return Fleet(addresses_of(settings.shard_urls, settings.shard_map), settings.probe_s)


def _caches(settings: ServingSettings) -> Caches:
    if not settings.cache_url:
        return Caches()
    from serving.shared_cache import shared_caches

    return shared_caches(settings.cache_url)


def _profiles(settings: ServingSettings) -> Profiles:
    if not settings.profiles_url:
        return NoProfiles()
    from serving.shared_cache import connect

    return RedisProfiles(connect(settings.profiles_url, PROFILE_TIMEOUT_S))
