"""Search metrics: phases, partial answers, caches, samples and live recall."""

from serving.search.live_recall import LiveRecall
from serving.search.pipeline import SearchDeps
from serving.search.schemas import SearchAnswer
from serving.telemetry.metrics import Metrics


class SearchMetrics:
    """Counts answers; the state of caches, samples and live recall is read at every scrape."""

    def __init__(self, metrics: Metrics, deps: SearchDeps, live_recall: LiveRecall) -> None:
        self.metrics, self.deps, self.live_recall = metrics, deps, live_recall
        self.phases = metrics.histogram("vitrine_phase_seconds", "Time per phase of a search", ["phase", "version"])
        self.partial = metrics.counter("vitrine_partial_answers_total", "Answers without all shards", ["version"])
        self.cache = metrics.gauge("vitrine_cache_lookups", "Cache look-ups since the start", ["cache", "outcome"])
        self.hit_rate = metrics.gauge(
            "vitrine_cache_hit_rate", "Share of look-ups that were answered, since the start", ["cache"]
        )
        self.profile_failures = metrics.gauge("vitrine_profile_failures", "Users that the feature store could not tell of")
        self.recall_queries = metrics.gauge(
            "vitrine_live_recall_queries", "Samples that were asked again exactly, since the start", ["version"]
        )
        self.recall_sum = metrics.gauge("vitrine_live_recall_sum", "The sum of their recalls at 10", ["version"])
        self.samples = metrics.gauge("vitrine_samples", "Searches kept as samples right now")
        metrics.before_scrape(self.refresh)

    def count(self, answer: SearchAnswer) -> None:
        """Counts an answer's phases, and whether shards were missing, by version."""
        version = answer.version.index
        self.metrics.use_version(version)
        for phase, ms in answer.timings_ms.items():
            self.phases.labels(phase, version).observe(ms / 1e3)
        if answer.coverage.shards_ok < answer.coverage.shards_total:
            self.partial.labels(version).inc()

    def refresh(self) -> None:
        for version, total in self.live_recall.sums_by_version().items():
            self.recall_queries.labels(version).set(total.queries)
            self.recall_sum.labels(version).set(total.recall)
        self.samples.set(len(self.deps.samples.ring))
        for name, cache in self.deps.caches:
            self.cache.labels(name, "hit").set(cache.hits)
            self.cache.labels(name, "miss").set(cache.misses)
            self.cache.labels(name, "error").set(cache.errors)
            self.hit_rate.labels(name).set(cache.hits / max(1, cache.hits + cache.misses))
        self.profile_failures.set(self.deps.profiles.failures)
