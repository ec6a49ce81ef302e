"""What one serving process holds: its slots, its workers, its caches and its counters."""

import asyncio
import hmac
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.cache import Caches
from serving.contract.preprocess import ImageLimits
from serving.metrics import Metrics
from serving.problems import Refused
from serving.release import Release
from serving.settings import ServingSettings
from serving.slots import Slots
from serving.source import VersionSource

Result = TypeVar("Result")

LOADER_POLL_S = 0.2


class Replica:
    """Opened by `start`, closed by `close`; in between it follows the aliases and works on searches."""

    def __init__(self, settings: ServingSettings, source: VersionSource) -> None:
        self.settings = settings
        self.slots = Slots(source, settings.threads)
        self.metrics = Metrics()
        self.caches = Caches()
        self.limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self.pool = ThreadPoolExecutor(settings.workers, "search")
        self.waiting = 0
        self.stop = threading.Event()
        self.watchers = [
            threading.Thread(target=self._repeat, args=(self.slots.follow, settings.poll_s), name="follow", daemon=True),
            threading.Thread(target=self._repeat, args=(self.slots.load_next, LOADER_POLL_S), name="load", daemon=True),
        ]

    def start(self) -> None:
        for watcher in self.watchers:
            watcher.start()

    def close(self) -> None:
        self.stop.set()
        for watcher in self.watchers:
            watcher.join(10)
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def work(self, call: Callable[[], Result]) -> Result:
        """Runs a call in the pool. Raises Refused(503) when too many wait already, or when this one waited for too long."""
        if self.waiting >= self.settings.workers + self.settings.queue:
            raise _overloaded("too many searches are waiting; try again in a second")
        latest = time.monotonic() + self.settings.deadline_s

        def in_time() -> Result:
            if time.monotonic() > latest:
                raise _overloaded(f"the search waited longer than {self.settings.deadline_s:g} s; try again in a second")
            return call()

        self.waiting += 1
        self.metrics.busy.set(self.waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, in_time)
        finally:
            self.waiting -= 1
            self.metrics.busy.set(self.waiting)

    def release(self, slot: str = "") -> Release:
        """The release to answer with. Raises Refused(503) when there is none."""
        found = self.slots.get(slot)
        if found is None:
            what = f"slot {slot} holds no version that is ready" if slot else "no index version is live on this replica yet"
            raise Refused(503, what, "not_ready", {"Retry-After": "5"})
        return found

    def check_admin(self, authorization: str) -> None:
        """Raises Refused unless the bearer token is the admin token (compared in constant time)."""
        token = authorization.removeprefix("Bearer ").strip()
        wanted = self.settings.admin_token
        if not wanted or not hmac.compare_digest(token.encode(), wanted.encode()):
            raise Refused(
                401, "this needs the admin token: Authorization: Bearer …", "unauthorized", {"WWW-Authenticate": "Bearer"}
            )

    def _repeat(self, call: Callable[[], object], every_s: float) -> None:
        while not self.stop.is_set():
            call()
            self.stop.wait(every_s)


def _overloaded(detail: str) -> Refused:
    return Refused(503, detail, "overloaded", {"Retry-After": "1"})
