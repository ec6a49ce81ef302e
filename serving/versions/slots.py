"""Blue-green slots: a replica's two versions, which follow the registry's aliases; flips are atomic.

A query uses one `Release` to its end; a flip changes a single reference. A version that cannot be verified never becomes ready, and
the live version stays. Loading and following run in separate threads, so that a flip back never waits for a slow candidate.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from serving.contract.addresses import error_line
from serving.contract.manifest import SLOTS
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.index.collection import NOWHERE, Endpoint
from serving.versions.encoder_trial import EncoderTrial
from serving.versions.release import Release
from serving.versions.version_source import VersionSource

log = logging.getLogger(__name__)

STATES = ("empty", "loading", "ready", "failed")
RETRY_S = 30.0
"""A failed version is loaded again after this long, as the failure may have been the network's; twice as long after
each further failure, unless it is what `live` names."""
MOST_RETRY_S = 600.0


class Version(Protocol):
    """What a slot holds: a `Release`, a `GatewayRelease`, or a `ShardSet`."""

    version: str

    @property
    def products(self) -> int: ...
    def away(self) -> str: ...
    def warm(self) -> None: ...


V = TypeVar("V", bound=Version)


class Opener(Protocol[V]):
    """Opens versions for one role, and says what blocks them from being ready or live."""

    def open(self, version: str) -> V:
        """Opens and verifies a version. Raises ContractError naming what is wrong with it."""
        ...

    def pending_reason(self, opened: V, first: bool) -> str:
        """Why an opened version is not ready yet; "" when it is. Raises ContractError where it never will be.

        `first`: nothing is live yet, so that a partial version may be better than none.
        """
        ...

    def flip_blocker(self, ready: V) -> str:
        """Why a ready version cannot go live now; "" when it can."""
        ...


class ReleaseOpener:
    """Opens whole releases; ready at once."""

    def __init__(
        self, source: VersionSource, threads: int = 1, runtime: Runtime = ONNXRUNTIME, endpoint: Endpoint = NOWHERE
    ) -> None:
        self.source, self.threads, self.runtime, self.endpoint = source, threads, runtime, endpoint
        self.trial = EncoderTrial()

    def open(self, version: str) -> Release:
        manifest = self.source.manifest(version)
        encoder = self.source.encoder(manifest)
        return Release.open(version, manifest, encoder, self.source.fetch, self.threads, self.runtime, self.trial, self.endpoint)

    def pending_reason(self, opened: Release, first: bool) -> str:
        return ""

    def flip_blocker(self, ready: Release) -> str:
        return ""


@dataclass
class Slot(Generic[V]):
    """One slot's state. `version` is what its alias names, `release` that version once it is ready.

    `pending`: the version while it is open but not ready yet, for the `reason` given. `failures` counts how often this version failed
    here, the last time at `failed_at`.
    """

    version: str = ""
    state: str = "empty"
    reason: str = ""
    since: str = ""
    release: V | None = field(default=None, repr=False)
    failed_at: float = 0.0
    failures: int = 0
    pending: V | None = field(default=None, repr=False)

    def describe(self, retry_s: int | None) -> dict[str, str | int | None]:
        rows = self.release.products if self.release else 0
        state: dict[str, str | int | None] = {"version": self.version, "state": self.state, "reason": self.reason}
        return state | {"since": self.since, "products": rows, "retry_s": retry_s, "failures": self.failures}


class Slots(Generic[V]):
    """Follows `blue`, `green` and `live`. One thread calls `follow`, another `load_next`; tests call `refresh`, which does both."""

    def __init__(
        self,
        source: VersionSource,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        opener: Opener[V] | None = None,
    ) -> None:
        self.source, self.clock = source, clock
        self.opener: Opener[Any] = opener or ReleaseOpener(source, threads)
        self.slots: dict[str, Slot[V]] = {name: Slot() for name in SLOTS}
        self.live: V | None = None
        self.live_slot = ""
        self.live_alias = ""
        self.error = ""
        self.registry_read = False
        self.flip_blocked = ""
        self.flips = self.failures = 0
        self.in_memory: list[tuple[str, weakref.ref[V]]] = []
        self.freed = 0
        self.lock, self.follow_lock = threading.Lock(), threading.Lock()

    def refresh(self) -> None:
        """Follows the aliases and loads all they newly name. Never raises."""
        self.follow()
        while self.load_next():
            pass

    def follow(self, again: str = "") -> None:
        """Reads the aliases, marks new versions for loading, and flips when `live` names a ready version. Never raises.

        A version that failed is loaded again after a pause that grows, and now where it is the version `again`.
        """
        with self.follow_lock:  # what was read of the aliases later is applied later
            self._follow(again)

    def _follow(self, again: str) -> None:
        self._count_freed()
        if (wanted := self._aliases()) is None:
            return
        with self.lock:
            self.live_alias = wanted["live"]
            for name in SLOTS:
                slot = self.slots[name]
                if wanted[name] != slot.version:
                    self.slots[name] = self._begin(wanted[name])
                elif slot.state == "failed" and (slot.version == again or self._retry_s(slot) <= 0):
                    self.slots[name] = replace(self._begin(slot.version), failures=slot.failures)
            self._flip()

    def _aliases(self) -> dict[str, str] | None:
        """The aliases as the registry has them; as last known where it was not read since the start; None where nothing is known."""
        names = (*SLOTS, "live")
        try:
            found = {name: self.source.resolve(name) for name in names}
        except Exception as error:  # the registry being away must not disturb what is served
            self.error = f"the registry does not answer: {error_line(error, 2000)}"
            known = {} if self.registry_read else self.source.last_known()
            return dict.fromkeys(names, "") | known if known else None
        self.error, self.registry_read = "", True
        return found

    def load_next(self) -> bool:
        """Advances one loading version, that of `live` first; returns whether another call now may go on. Never raises."""
        with self.lock:
            waiting = [n for n in SLOTS if self.slots[n].state == "loading"]
            if not waiting:
                return False
            name = min(waiting, key=lambda n: (self.slots[n].pending is not None, self.slots[n].version != self.live_alias))
            slot = self.slots[name]
        loaded = self._load(name, slot)
        with self.lock:
            for other in SLOTS:  # the alias may have moved on meanwhile, or both slots may name this version
                if self.slots[other].state == "loading" and self.slots[other].version == slot.version:
                    self.slots[other] = loaded
            self._flip()
        settled = loaded.state != "loading"  # it became ready, or failed
        another_is_next = slot.pending is None and len(waiting) > 1  # this one was opened just now, and waits for its shards
        return settled or another_is_next

    def get(self, slot: str = "") -> V | None:
        """The live release, or a slot's ready one."""
        return self.slots[slot].release if slot else self.live

    def releases(self) -> list[V]:
        """Every version that is live or ready in a slot."""
        with self.lock:
            found = [s.release for s in self.slots.values()] + [self.live]
        return [r for n, r in enumerate(found) if r is not None and r not in found[:n]]

    def describe(self) -> dict[str, object]:
        live = self.live
        return {
            "live": {"version": live.version, "slot": self.live_slot} if live else None,
            "slots": {
                n: s.describe(max(0, round(self._retry_s(s))) if s.state == "failed" else None) for n, s in self.slots.items()
            },
            "error": self.error or self.flip_blocked,
            "flips": self.flips,
        }

    def not_live_reason(self) -> str:
        """The sentence answered while nothing is live."""
        why = self.error or self.flip_blocked
        return f"no index version is live on this replica yet{': ' + why if why else ''}"

    def draining(self) -> list[str]:
        """Versions that no slot holds but that are still in memory, for requests that started with them."""
        held = [*self.releases(), *(s.pending for s in self.slots.values())]
        return sorted(version for version, release in list(self.in_memory) if (found := release()) and found not in held)

    def _begin(self, version: str) -> Slot[V]:
        """The initial state of a slot for a version: empty, ready (loaded in the other slot, or live), or loading."""
        if not version:
            return Slot(since=_now())
        held = [s.release for s in self.slots.values() if s.version == version and s.state == "ready"]
        if self.live is not None and self.live.version == version:
            held.append(self.live)
        return Slot(version, "ready", "", _now(), held[0]) if held else Slot(version, "loading", "", _now())

    def _flip(self) -> None:
        self.flip_blocked = ""
        for name, slot in self.slots.items():
            if not self.live_alias or slot.version != self.live_alias or slot.release is None:
                continue
            if self.live is not slot.release:
                if self.live is not None and (why := self.opener.flip_blocker(slot.release)):
                    self.flip_blocked = f"version {slot.version} is not live yet: {why}"
                    return
                before = self.live.version if self.live else "nothing"
                self.live, self.live_slot = slot.release, name
                self.flips += 1
                log.info("live: version %s from %s (before: %s)", slot.version, name, before)
            elif self.slots[self.live_slot].release is not self.live:
                self.live_slot = name
            return
        self.flip_blocked = self._absent()

    def _absent(self) -> str:
        """Why the version that `live` names is not live, where no slot has it ready; "" where it is live all the same."""
        wanted, serves = self.live_alias, self.live.version if self.live else ""
        if wanted and wanted == serves:
            return ""
        if not wanted:
            why = "the alias live names no version"
        elif name := next((n for n, s in self.slots.items() if s.version == wanted), ""):
            why = f"version {wanted} is not ready: slot {name} is {self.slots[name].state}"
        else:
            held = ", ".join(f"{n} names {s.version or 'none'}" for n, s in self.slots.items())
            why = f"the alias live names version {wanted}, which is in no slot ({held})"
        return f"{why}; version {serves} goes on" if serves else why

    def _load(self, name: str, slot: Slot[V]) -> Slot[V]:
        """Opens, verifies and warms a slot's version; returns the slot as ready, still loading with a reason, or failed."""
        version, opened = slot.version, slot.pending
        try:
            if opened is None:
                log.info("%s: loading version %s", name, version)
                opened = self.opener.open(version)
                self.in_memory.append((version, weakref.ref(opened)))
            waits = self.opener.pending_reason(opened, self.live is None)
            if waits:
                return replace(slot, reason=waits, pending=opened)
            opened.warm()
        except Exception as error:  # whatever is wrong with a candidate, the live version goes on
            log.error("%s: version %s failed: %s", name, version, error_line(error, 2000))
            self.failures += 1
            return Slot(version, "failed", error_line(error, 2000), _now(), failed_at=self.clock(), failures=slot.failures + 1)
        log.info("%s: version %s is ready (%d products)", name, version, opened.products)
        return Slot(version, "ready", "", _now(), opened)

    def _retry_s(self, slot: Slot[V]) -> float:
        """In how many seconds a version that failed is loaded again."""
        pause_s = RETRY_S if slot.version == self.live_alias else min(RETRY_S * 2 ** min(slot.failures - 1, 10), MOST_RETRY_S)
        return slot.failed_at + pause_s - self.clock()

    def _count_freed(self) -> None:
        """Counts retired versions whose last request has ended: nothing refers to them any more."""
        gone = [kept for kept in list(self.in_memory) if kept[1]() is None]
        for kept in gone:
            self.in_memory.remove(kept)
            self.freed += 1
            log.info("version %s is freed", kept[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
