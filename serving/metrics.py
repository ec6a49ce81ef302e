"""What Prometheus reads: one registry per app, so that two apps in one process do not share counters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters and histograms of a replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vitrine_requests_total", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.phases = Histogram(
            "vitrine_phase_seconds", "Time per phase of a search", ["phase", "version"], buckets=BUCKETS_S, registry=self.registry
        )
        self.rejected = Counter("vitrine_rejected_total", "Images refused, by reason", ["reason"], registry=self.registry)
        self.cache = Counter("vitrine_cache_total", "Cache look-ups", ["cache", "outcome"], registry=self.registry)
        self.live = Gauge(
            "vitrine_live_version", "1 for the index version that serves", ["version", "slot"], registry=self.registry
        )
        self.busy = Gauge("vitrine_busy", "Searches being worked on or waiting", registry=self.registry)

    def search(self, timings_ms: dict[str, float], version: str, cached: list[str], photo: bool) -> None:
        for phase, ms in timings_ms.items():
            self.phases.labels(phase, version).observe(ms / 1e3)
        if photo:
            self.cache.labels("embedding", "hit" if "embedding" in cached else "miss").inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
