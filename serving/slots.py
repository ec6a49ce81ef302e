"""The two places a replica holds versions in, and how they follow the aliases without a query ever seeing a mix.

A query takes one `Release` and keeps it to its end; the flip changes a single reference. A version that cannot be verified never
becomes ready, and what was live stays.
"""

import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serving.release import Release
from serving.source import VersionSource

log = logging.getLogger(__name__)

SLOTS = ("blue", "green")
STATES = ("empty", "loading", "ready", "failed")


@dataclass
class Slot:
    """What one slot holds. `version` is what its alias names, `release` that version once it is ready."""

    version: str = ""
    state: str = "empty"
    reason: str = ""
    since: str = ""
    release: Release | None = field(default=None, repr=False)

    def describe(self) -> dict[str, str | int]:
        rows = self.release.searcher.live_rows if self.release else 0
        return {"version": self.version, "state": self.state, "reason": self.reason, "since": self.since, "products": rows}


class Slots:
    """Follows `blue`, `green` and `live`; `refresh` is called by a thread every few seconds and by tests directly."""

    def __init__(self, source: VersionSource, threads: int = 1) -> None:
        self.source, self.threads = source, threads
        self.slots = {name: Slot() for name in SLOTS}
        self.live: Release | None = None
        self.live_slot = ""
        self.error = ""
        self.flips = 0
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Loads what the aliases newly name, then flips when `live` names a version that is ready. Never raises."""
        with self.lock:
            try:
                wanted = {name: self.source.resolve(name) for name in (*SLOTS, "live")}
                self.error = ""
            except Exception as error:  # the registry being away must not disturb what is served
                self.error = f"the registry does not answer: {_sentence(error)}"
                return
            # What serves is loaded first, so that a replica that starts is ready as early as it can be.
            for name in sorted(SLOTS, key=lambda n: wanted[n] != wanted["live"]):
                if wanted[name] != self.slots[name].version:
                    self._load(name, wanted[name])
                if name == self._slot_of(wanted["live"]):
                    self._flip(name)

    def get(self, slot: str = "") -> Release | None:
        """The live release, or the one that a slot holds ready."""
        return self.slots[slot].release if slot else self.live

    def describe(self) -> dict[str, object]:
        live = {"version": self.live.version, "slot": self.live_slot} if self.live else None
        return {"live": live, "slots": {n: s.describe() for n, s in self.slots.items()}, "error": self.error, "flips": self.flips}

    def _slot_of(self, version: str) -> str:
        return next((n for n, s in self.slots.items() if version and s.version == version and s.state == "ready"), "")

    def _flip(self, name: str) -> None:
        release = self.slots[name].release
        if release is not None and self.live is not release:
            before = self.live.version if self.live else "nothing"
            self.live, self.live_slot = release, name
            self.flips += 1
            log.info("live: version %s from %s (before: %s)", release.version, name, before)

    def _load(self, name: str, version: str) -> None:
        """Fills a slot with a version, verified and warm. The slot's old release is dropped only when the new one is named."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if not version:
            self.slots[name] = Slot(since=now)
            return
        other = next((s for s in self.slots.values() if s.version == version and s.state == "ready"), None)
        if other is not None:
            self.slots[name] = Slot(version, "ready", "", now, other.release)
            return
        self.slots[name] = Slot(version, "loading", "", now)
        log.info("%s: loading version %s", name, version)
        try:
            manifest = self.source.manifest(version)
            release = Release.open(version, manifest, self.source.encoder(manifest), self.source.fetch, self.threads)
            release.warm()
            self.slots[name] = Slot(version, "ready", "", now, release)
            log.info("%s: version %s is ready (%d products)", name, version, release.searcher.live_rows)
        except Exception as error:  # whatever is wrong with a candidate, the live version goes on
            self.slots[name] = Slot(version, "failed", _sentence(error), now)
            log.error("%s: version %s failed: %s", name, version, _sentence(error))


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
