"""Metrics of a sharded index: of the gateway and of the shard process."""

from serving.cluster.fleet import Fleet
from serving.telemetry.metrics import Metrics


class GatewayMetrics:
    """Latency, outcome and availability of shards, as seen by a gateway."""

    def __init__(self, metrics: Metrics, fleet: Fleet) -> None:
        self.fleet = fleet
        self.took = metrics.histogram("vitrine_shard_seconds", "Time until a shard answered a gateway", ["shard"])
        self.answers = metrics.counter(
            "vitrine_shard_answers_total", "Answers of shards by who gave them: first, hedge, or lost", ["shard", "outcome"]
        )
        self.up = metrics.gauge("vitrine_shard_up", "Whether a shard process answers probes", ["address"])
        metrics.before_scrape(self.refresh)

    def refresh(self) -> None:
        self.up.clear()
        for backend in list(self.fleet.backends.values()):
            self.up.labels(backend.name).set(int(backend.up))


class ShardMetrics:
    """Search latency and load of a shard process."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.took = metrics.histogram("vitrine_shard_search_seconds", "Time a shard process searches", ["shard", "version"])
        self.busy = metrics.gauge("vitrine_busy", "Searches being worked on or waiting")

    def count(self, shard: str, version: str, took_s: float) -> None:
        self.metrics.use_version(version)
        self.took.labels(shard, version).observe(took_s)
