"""What Prometheus reads: one registry per app, so that two apps in one process do not share counters."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.live_recall import Tally
from serving.queries import Means
from serving.slots import STATES, Slots

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters, gauges and histograms of a replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.busy = Gauge("vitrine_busy", "Searches being worked on or waiting", **own)

    def request(self, route: str, status: int, took_s: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.took.labels(route).observe(took_s)

    def search(self, timings_ms: dict[str, float], version: str) -> None:
        for phase, ms in timings_ms.items():
            self.phases.labels(phase, version).observe(ms / 1e3)

    def text(self, slots: Slots, means: Means, recall: dict[str, Tally]) -> bytes:
        """Everything, in Prometheus's text format, with the state of slots and caches as it is now."""
        for version, tally in recall.items():
            self.recalled.labels(version).set(tally.queries)
            self.recall.labels(version).set(tally.recall)
        self.samples.set(len(means.samples.ring))
        self.live.clear()
        if slots.live is not None:
            self.live.labels(slots.live.version, slots.live_slot).set(1)
        for name, slot in slots.slots.items():
            for state in STATES:
                self.state.labels(name, state).set(int(slot.state == state))
        self.flips.set(slots.flips)
        self.failures.set(slots.failures)
        self.registry_ok.set(int(not slots.error))
        for name, cache in means.caches:
            self.cache.labels(name, "hit").set(cache.hits)
            self.cache.labels(name, "miss").set(cache.misses)
            self.cache.labels(name, "error").set(cache.errors)
            self.hit_rate.labels(name).set(cache.hits / max(1, cache.hits + cache.misses))
        self.profile_failures.set(means.profiles.failures)
        return generate_latest(self.registry)
