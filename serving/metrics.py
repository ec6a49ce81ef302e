"""What Prometheus reads: one registry per app, so that two apps in one process do not share counters."""

import threading
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.connection_limits import LimitedHttpProtocol
from serving.live_recall import VERSIONS, Tally
from serving.memory import resident_bytes
from serving.models import SearchAnswer
from serving.queries import SearchDeps
from serving.shards.fleet import Fleet
from serving.slots import STATES, Slots

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters, gauges and histograms of a replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.versions: dict[str, None] = {}
        self.asked_last = ""
        self.timers: dict[tuple[str, str], Histogram] = {}
        self.routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.lock = threading.Lock()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("vitrine_requests_total", "Requests by route and status", ["route", "status"], **own)
        self.took = Histogram("vitrine_request_seconds", "Time per request", ["route"], buckets=BUCKETS_S, **own)
        self.phases = Histogram(
            "vitrine_phase_seconds", "Time per phase of a search", ["phase", "version"], buckets=BUCKETS_S, **own
        )
        self.rejected = Counter("vitrine_rejected_total", "Images refused, by reason", ["reason"], **own)
        self.cache = Gauge("vitrine_cache_lookups", "Cache look-ups since the start", ["cache", "outcome"], **own)
        self.hit_rate = Gauge("vitrine_cache_hit_rate", "Share of look-ups that were answered, since the start", ["cache"], **own)
        self.profile_failures = Gauge("vitrine_profile_failures", "Users that the feature store could not tell of", **own)
        self.live = Gauge("vitrine_live_version", "1 for the index version that serves", ["version", "slot"], **own)
        self.state = Gauge("vitrine_slot_state", "1 for the state a slot is in", ["slot", "state"], **own)
        self.flips = Gauge("vitrine_flips", "Times another version went live since the start", **own)
        self.failures = Gauge("vitrine_load_failures", "Versions that could not be loaded since the start", **own)
        self.registry_ok = Gauge("vitrine_registry_ok", "Whether the registry answered the last time it was asked", **own)
        self.recalled = Gauge(
            "vitrine_live_recall_queries", "Samples that were asked again exactly, since the start", ["version"], **own
        )
        self.recall = Gauge("vitrine_live_recall_sum", "The sum of their recalls at 10", ["version"], **own)
        self.samples = Gauge("vitrine_samples", "Searches kept as samples right now", **own)
        self.part = Histogram(
            "vitrine_shard_search_seconds", "Time a shard process searches", ["shard", "version"], buckets=BUCKETS_S, **own
        )
        self.shard_took = Histogram(
            "vitrine_shard_seconds", "Time until a shard answered a gateway", ["shard"], buckets=BUCKETS_S, **own
        )
        self.shard_asked = Counter(
            "vitrine_shard_answers_total",
            "Answers of shards by who gave them: first, hedge, or lost",
            ["shard", "outcome"],
            **own,
        )
        self.shard_up = Gauge("vitrine_shard_up", "Whether a shard process answers probes", ["address"], **own)
        self.partial = Counter("vitrine_partial_answers_total", "Answers without all shards", ["version"], **own)
        self.draining = Gauge("vitrine_draining_versions", "Versions given up whose last request has not ended", **own)
        self.freed = Gauge("vitrine_freed_versions", "Versions whose memory was given back since the start", **own)
        self.memory = Gauge("vitrine_resident_bytes", "Memory this process occupies", **own)
        self.turned_away = Gauge(
            "vitrine_connections_turned_away", "Connections closed since the start because as many were open as may be", **own
        )
        self.busy = Gauge("vitrine_busy", "Searches being worked on or waiting", **own)

    def request(self, route: str, status: int, took_s: float) -> None:
        known = self.routes.get((route, status))  # looking series up by their labels costs more than counting
        if known is None:
            known = self.routes[route, status] = self.requests.labels(route, str(status)), self.took.labels(route)
        known[0].inc()
        known[1].observe(took_s)

    def search(self, answer: SearchAnswer) -> None:
        """Counts one answer by its version: its phases, and whether shards were missing."""
        version = answer.version.index
        self.asked(version)
        for phase, ms in answer.timings_ms.items():
            timer = self.timers.get((phase, version))
            if timer is None:
                timer = self.timers[phase, version] = self.phases.labels(phase, version)
            timer.observe(ms / 1e3)
        if answer.coverage.shards_ok < answer.coverage.shards_total:
            self.partial.labels(version).inc()

    def shard_searched(self, shard: str, version: str, took_s: float) -> None:
        self.asked(version)
        self.part.labels(shard, version).observe(took_s)

    def asked(self, version: str) -> None:
        """Keeps the series of the VERSIONS that were asked last, of which this is the newest: each flip would add some for ever."""
        if version == self.asked_last:
            return
        with self.lock:
            self.asked_last = version
            self.versions.pop(version, None)
            self.versions[version] = None
            for old in list(self.versions)[:-VERSIONS]:
                del self.versions[old]
                for series in (self.phases, self.part, self.partial, self.recalled, self.recall):
                    series.remove_by_labels({"version": old})
                self.timers = {key: timer for key, timer in self.timers.items() if key[1] != old}

    def text(
        self,
        slots: Slots[Any],
        deps: SearchDeps | None = None,
        recall: dict[str, Tally] | None = None,
        fleet: Fleet | None = None,
    ) -> bytes:
        """Everything, in Prometheus's text format, with the state of slots, caches and shards as it is now."""
        self._slots(slots)
        for version, tally in (recall or {}).items():
            self.recalled.labels(version).set(tally.queries)
            self.recall.labels(version).set(tally.recall)
        if deps is not None:
            self._deps(deps)
        self.shard_up.clear()
        for backend in list(fleet.backends.values()) if fleet else []:
            self.shard_up.labels(backend.name).set(int(backend.up))
        self.memory.set(resident_bytes())
        self.turned_away.set(LimitedHttpProtocol.turned_away)
        return generate_latest(self.registry)

    def _slots(self, slots: Slots[Any]) -> None:
        self.live.clear()
        if slots.live is not None:
            self.live.labels(slots.live.version, slots.live_slot).set(1)
        for name, slot in slots.slots.items():
            for state in STATES:
                self.state.labels(name, state).set(int(slot.state == state))
        self.flips.set(slots.flips)
        self.failures.set(slots.failures)
        self.registry_ok.set(int(not slots.error))
        self.draining.set(len(slots.draining()))
        self.freed.set(slots.freed)

    def _deps(self, deps: SearchDeps) -> None:
        self.samples.set(len(deps.samples.ring))
        for name, cache in deps.caches:
            self.cache.labels(name, "hit").set(cache.hits)
            self.cache.labels(name, "miss").set(cache.misses)
            self.cache.labels(name, "error").set(cache.errors)
            self.hit_rate.labels(name).set(cache.hits / max(1, cache.hits + cache.misses))
        self.profile_failures.set(deps.profiles.failures)
