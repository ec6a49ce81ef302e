"""The two places a replica holds versions in, and how they follow the aliases without a query ever seeing a mix.

A query takes one `Release` and keeps it to its end; the flip changes a single reference. A version that cannot be verified never
becomes ready, and what was live stays. Loading and following are apart, so that a flip back never waits for a slow candidate.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serving.release import Release
from serving.source import VersionSource

log = logging.getLogger(__name__)

SLOTS = ("blue", "green")
STATES = ("empty", "loading", "ready", "failed")
RETRY_S = 30.0
"""A version that failed is tried again after this long: what failed may have been the network."""


@dataclass
class Slot:
    """What one slot holds. `version` is what its alias names, `release` that version once it is ready."""

    version: str = ""
    state: str = "empty"
    reason: str = ""
    since: str = ""
    release: Release | None = field(default=None, repr=False)
    failed_at: float = 0.0

    def describe(self) -> dict[str, str | int]:
        rows = self.release.searcher.live_rows if self.release else 0
        return {"version": self.version, "state": self.state, "reason": self.reason, "since": self.since, "products": rows}


class Slots:
    """Follows `blue`, `green` and `live`. One thread calls `follow`, another `load_next`; tests call `refresh`, which does both."""

    def __init__(self, source: VersionSource, threads: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.source, self.threads, self.clock = source, threads, clock
        self.slots = {name: Slot() for name in SLOTS}
        self.live: Release | None = None
        self.live_slot = ""
        self.wanted_live = ""
        self.error = ""
        self.flips = self.failures = 0
        self.lock, self.following = threading.Lock(), threading.Lock()

    def refresh(self) -> None:
        """Follows the aliases and loads all they newly name. Never raises."""
        self.follow()
        while self.load_next():
            pass

    def follow(self) -> None:
        """Marks what the aliases newly name for loading, and flips when `live` names a version that is ready. Never raises."""
        with self.following:  # what was read of the aliases later is applied later
            self._follow()

    def _follow(self) -> None:
        try:
            wanted = {name: self.source.resolve(name) for name in (*SLOTS, "live")}
        except Exception as error:  # the registry being away must not disturb what is served
            self.error = f"the registry does not answer: {_sentence(error)}"
            return
        self.error = ""
        with self.lock:
            self.wanted_live = wanted["live"]
            for name in SLOTS:
                slot = self.slots[name]
                late = slot.state == "failed" and self.clock() - slot.failed_at >= RETRY_S
                if wanted[name] != slot.version or late:
                    self.slots[name] = self._begin(wanted[name])
            self._flip()

    def load_next(self) -> bool:
        """Loads one version that is waiting for it, what is to serve first. Whether there was one. Never raises."""
        with self.lock:
            waiting = [n for n in SLOTS if self.slots[n].state == "loading"]
            if not waiting:
                return False
            name = min(waiting, key=lambda n: self.slots[n].version != self.wanted_live)
            slot = self.slots[name]
        loaded = self._load(name, slot.version)
        with self.lock:
            for other in SLOTS:  # the alias may have moved on meanwhile, or both slots may name this version
                if self.slots[other].state == "loading" and self.slots[other].version == slot.version:
                    self.slots[other] = loaded
            self._flip()
        return True

    def get(self, slot: str = "") -> Release | None:
        """The live release, or the one that a slot holds ready."""
        return self.slots[slot].release if slot else self.live

    def describe(self) -> dict[str, object]:
        live = self.live
        return {
            "live": {"version": live.version, "slot": self.live_slot} if live else None,
            "slots": {n: s.describe() for n, s in self.slots.items()},
            "error": self.error,
            "flips": self.flips,
        }

    def _begin(self, version: str) -> Slot:
        """A slot for a version: empty, already loaded (in the other slot, or still live), or waiting to be loaded."""
        if not version:
            return Slot(since=_now())
        held = [s.release for s in self.slots.values() if s.version == version and s.state == "ready"]
        if self.live is not None and self.live.version == version:
            held.append(self.live)
        return Slot(version, "ready", "", _now(), held[0]) if held else Slot(version, "loading", "", _now())

    def _flip(self) -> None:
        for name, slot in self.slots.items():
            if not self.wanted_live or slot.version != self.wanted_live or slot.release is None:
                continue
            if self.live is not slot.release:
                before = self.live.version if self.live else "nothing"
                self.live, self.live_slot = slot.release, name
                self.flips += 1
                log.info("live: version %s from %s (before: %s)", slot.version, name, before)
            elif self.slots[self.live_slot].release is not self.live:
                self.live_slot = name
            return

    def _load(self, name: str, version: str) -> Slot:
        """The version opened, verified and warm, or the reason why not."""
        log.info("%s: loading version %s", name, version)
        try:
            manifest = self.source.manifest(version)
            release = Release.open(version, manifest, self.source.encoder(manifest), self.source.fetch, self.threads)
            release.warm()
        except Exception as error:  # whatever is wrong with a candidate, the live version goes on
            log.error("%s: version %s failed: %s", name, version, _sentence(error))
            self.failures += 1
            return Slot(version, "failed", _sentence(error), _now(), failed_at=self.clock())
        log.info("%s: version %s is ready (%d products)", name, version, release.searcher.live_rows)
        return Slot(version, "ready", "", _now(), release)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
