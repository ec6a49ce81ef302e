"""Prometheus metrics: one registry per application, so that two in one process do not share counters.

Each package registers its own metrics (serving/*/metrics.py) and, for values that are read rather than counted, a function that
runs before each scrape.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.telemetry.memory import resident_bytes

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
VERSIONS = 8
"""Index versions whose series are kept, the last used: a replica that runs for years sees thousands."""

M = TypeVar("M", Counter, Gauge, Histogram)


class Metrics:
    """A registry, and the functions that refresh it before a scrape. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refreshers: list[Callable[[], None]] = []
        self.by_version: list[Counter | Gauge | Histogram] = []
        self.versions: dict[str, None] = {}
        self.newest = ""
        self.lock = threading.Lock()
        memory = self.gauge("vitrine_resident_bytes", "Memory this process occupies")
        self.before_scrape(lambda: memory.set(resident_bytes()))

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        return self._registered(Counter(name, documentation, labels, registry=self.registry), labels)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        return self._registered(Gauge(name, documentation, labels, registry=self.registry), labels)

    def histogram(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Histogram:
        """A histogram of times in seconds."""
        return self._registered(Histogram(name, documentation, labels, buckets=BUCKETS_S, registry=self.registry), labels)

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Registers a function to run before each scrape."""
        self.refreshers.append(refresh)

    def use_version(self, version: str) -> None:
        """Marks a version as last used and drops the series of all but the last VERSIONS, as each flip adds some."""
        if version == self.newest:
            return
        with self.lock:
            self.newest = version
            self.versions.pop(version, None)
            self.versions[version] = None
            for old in list(self.versions)[:-VERSIONS]:
                del self.versions[old]
                for series in self.by_version:
                    series.remove_by_labels({"version": old})

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        for refresh in self.refreshers:
            refresh()
        return generate_latest(self.registry)

    def _registered(self, metric: M, labels: Sequence[str]) -> M:
        if "version" in labels and "slot" not in labels:
            self.by_version.append(metric)
        return metric
