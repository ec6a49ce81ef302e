"""The bake: after the flip, replica metrics are monitored for a while, and decide whether the version stays."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from tasks.records import Record
from tasks.release.gates.index_gates import Decision
from tasks.release.promotion.serving_replicas import Replica, for_each_replica

POLL_S = 1.0
SEARCHES = ("/v1/search", "/v1/products")


@dataclass(frozen=True)
class BakePolicy:
    """Limits during the bake. Fractions of 1, milliseconds, seconds."""

    errors: float = 0.01
    """Most searches that may end in 5xx."""
    least_searches: int = 20
    """Fewer searches than this say nothing about errors or p99."""
    p99_ms: float = 200.0
    recall: float = 0.90
    """Least recall@10 of sampled real queries against exact search over the same version."""
    least_samples: int = 5
    silent_s: float = 15.0
    """How long a replica may not answer, or serve something else, before the version goes."""


@dataclass(frozen=True)
class Reading(Record):
    """Counters of one replica since its start: searches, errors, latency buckets (upper bound in s -> count), recall."""

    searches: float = 0.0
    errors: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)
    samples: float = 0.0
    recall_sum: float = 0.0
    serves: str = ""
    url: str = ""
    """Whose reading it is."""

    def since(self, before: "Reading") -> "Reading":
        """The difference to an earlier reading; a restarted replica counts from zero."""
        if self.searches < before.searches or self.samples < before.samples:
            before = Reading()
        buckets = {le: n - before.buckets.get(le, 0.0) for le, n in self.buckets.items()}
        return Reading(
            self.searches - before.searches, self.errors - before.errors, buckets, self.samples - before.samples,
            self.recall_sum - before.recall_sum, self.serves, self.url,
        )  # fmt: skip


def read_metrics(text: str, version: str) -> Reading:
    """Parses a replica's /metrics; latency and recall are of `version`, searches of the whole replica."""
    from prometheus_client.parser import text_string_to_metric_families

    searches = errors = samples = recall = 0.0
    buckets: dict[float, float] = {}
    serves = ""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            match sample.name:
                case "vitrine_requests_total" if labels["route"].startswith(SEARCHES):
                    searches += value
                    errors += value if labels["status"].startswith("5") else 0.0
                case "vitrine_phase_seconds_bucket" if (labels["phase"], labels["version"]) == ("total", version):
                    buckets[float(labels["le"])] = value
                case "vitrine_live_recall_queries" if labels["version"] == version:
                    samples = value
                case "vitrine_live_recall_sum" if labels["version"] == version:
                    recall = value
                case "vitrine_live_version" if value == 1:
                    serves = labels["version"]
    return Reading(searches, errors, buckets, samples, recall, serves)


def total(readings: Sequence[Reading]) -> Reading:
    """The sum of several replicas' readings."""
    bounds = {le for r in readings for le in r.buckets}
    buckets = {le: sum(r.buckets.get(le, 0.0) for r in readings) for le in bounds}
    sums = [sum(values) for values in zip(*((r.searches, r.errors, r.samples, r.recall_sum) for r in readings), strict=True)]
    searches, errors, samples, recall = sums or [0.0] * 4
    return Reading(searches, errors, buckets, samples, recall)


def quantile_s(buckets: Mapping[float, float], q: float) -> float:
    """Quantile of a cumulative histogram (upper bound in s -> count), interpolated linearly as in Prometheus.

    What lies beyond the last finite bound counts as that bound. 0 when nothing was counted.
    """
    bounds = sorted(buckets)
    count = buckets[bounds[-1]] if bounds else 0.0
    if count <= 0:
        return 0.0
    below, low = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= q * count:
            inside = buckets[bound] - below
            return low if bound == float("inf") else low + (bound - low) * (q * count - below) / inside
        below, low = buckets[bound], bound
    return low


def decide(reading: Reading, policy: BakePolicy) -> Decision:
    """Whether the counts since the flip, over all replicas, let the version stay; the reasons name values and limits."""
    wrong: list[str] = []
    told: list[str] = []
    share, p99_ms = reading.errors / max(reading.searches, 1), 1e3 * quantile_s(reading.buckets, 0.99)
    timed = max(reading.buckets.values(), default=0.0)
    if reading.searches >= policy.least_searches:
        text = f"{reading.errors:.0f} of {reading.searches:.0f} searches failed ({share:.1%}, at most {policy.errors:.1%})"
        (wrong if share > policy.errors else told).append(text)
    if timed >= policy.least_searches:
        text = f"p99 {p99_ms:.0f} ms (at most {policy.p99_ms:.0f})"
        (wrong if p99_ms > policy.p99_ms else told).append(text)
    if reading.samples >= policy.least_samples:
        recall = reading.recall_sum / reading.samples
        text = f"recall@10 {recall:.3f} on {reading.samples:.0f} real queries (at least {policy.recall:.2f})"
        (wrong if recall < policy.recall else told).append(text)
    quiet = (
        f"too few searches to judge it by ({reading.searches:.0f} of {policy.least_searches} needed, {reading.samples:.0f} of "
        f"{policy.least_samples} sampled queries needed)",
    )
    return Decision(not wrong, tuple(wrong) or tuple(told) or quiet)


def bake(
    replicas: Sequence[Replica], version: str, before: Sequence[Reading], window_s: float, policy: BakePolicy,
    still_mine: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Decision:  # fmt: skip
    """Monitors all replicas for `window_s` seconds, judging continuously; ends early when the version fails.

    `before`: each replica's reading from before the flip. `still_mine` raises when this promotion may not go on.
    """
    began = clock()
    heard = [began] * len(replicas)
    latest = list(before)
    while True:
        readings = for_each_replica(replicas, lambda r: take_reading(r, version))
        now = clock()
        for place, found in enumerate(readings):
            if found is not None and found.serves == version:
                heard[place], latest[place] = now, found
        silent = [r.url for r, at in zip(replicas, heard, strict=True) if now - at > policy.silent_s]
        decision = decide(total([a.since(b) for a, b in zip(latest, before, strict=True)]), policy)
        if silent:
            reason = f"{', '.join(silent)} did not serve version {version} for {policy.silent_s:.0f} s"
            return Decision(False, (reason, *(decision.reasons if not decision.passed else ())))
        if not decision.passed or (now - began >= window_s and min(heard, default=now) == now):
            return decision
        still_mine()
        left = window_s - (now - began)
        pause(min(POLL_S, left) if left > 0 else POLL_S)


def take_reading(replica: Replica, version: str) -> Reading | None:
    """A replica's current reading; None when it does not respond."""
    try:
        return dataclasses.replace(read_metrics(replica.metrics(), version), url=replica.url)
    except (httpx.HTTPError, ValueError):
        return None
