"""Metrics and sampled queries collected from the replicas."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from tasks.release.promotion.serving_replicas import Replica

TIMEOUT_S = 10
SERVED = ("/v1/search", "/v1/search/batch", "/v1/products/{product_id:path}/similar")
"""The routes whose answers shoppers wait for."""
WAITING = ("total", "fetch")
"""Phases that are not work: the whole with its waiting, and the network's."""


@dataclass(frozen=True)
class Counters:
    """Counters summed over the replicas that responded, since their start: cache lookups, requests, and busy time."""

    replicas: int
    silent: tuple[str, ...]
    hits: dict[str, float]
    lookups: dict[str, float]
    requests: float
    errors: float
    searches: float
    busy_s: float
    """Seconds of work in the phases of all searches, waiting not counted."""
    slower: dict[float, float]
    """Requests that took at most so many seconds: the histogram, cumulative, by its upper bounds."""

    def hit_rate(self, cache: str) -> float:
        return self.hits.get(cache, 0.0) / max(self.lookups.get(cache, 0.0), 1.0)

    def quantile_ms(self, share: float) -> float:
        """Upper bound in ms of the histogram bucket with this quantile of the requests; 0 without requests."""
        total = max(self.slower.values(), default=0.0)
        if not total:
            return 0.0
        finite = [bound for bound, count in sorted(self.slower.items()) if count >= share * total]
        return 1e3 * finite[0]


def read_counters(replicas: Sequence[Replica]) -> Counters:
    """Reads /metrics of every replica; those that do not respond are listed in `silent`."""
    silent: list[str] = []
    hits: dict[str, float] = {}
    lookups: dict[str, float] = {}
    slower: dict[float, float] = {}
    requests = errors = searches = busy = 0.0
    for replica in replicas:
        try:
            text = httpx.get(f"{replica.url}/metrics", timeout=TIMEOUT_S, trust_env=False).raise_for_status().text
        except httpx.HTTPError:
            silent.append(replica.url)
            continue
        for name, labels, value in samples_of(text):
            if name == "vitrine_cache_lookups":
                cache = labels["cache"]
                hits[cache] = hits.get(cache, 0.0) + (value if labels["outcome"] == "hit" else 0.0)
                lookups[cache] = lookups.get(cache, 0.0) + (value if labels["outcome"] != "error" else 0.0)
            elif name == "vitrine_requests_total" and labels["route"] in SERVED:
                requests += value
                errors += value if labels["status"].startswith("5") else 0.0
            elif name == "vitrine_request_seconds_bucket" and labels["route"] in SERVED:
                bound = float(labels["le"])
                slower[bound] = slower.get(bound, 0.0) + value
            elif name == "vitrine_phase_seconds_count" and labels["phase"] == "total":
                searches += value
            elif name == "vitrine_phase_seconds_sum" and labels["phase"] not in WAITING:
                busy += value
    return Counters(len(replicas) - len(silent), tuple(silent), hits, lookups, requests, errors, searches, busy, slower)


def samples_of(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Parses Prometheus's text format into (name, labels, value)."""
    from prometheus_client.parser import text_string_to_metric_families

    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def sampled_queries(replicas: Sequence[Replica], fingerprint: str, limit: int) -> np.ndarray:
    """Vectors (n, d) float32 of at most `limit` real queries by this encoder, from all replicas."""
    found: list[np.ndarray] = []
    for replica in replicas:
        try:
            answer = httpx.get(
                f"{replica.url}/v1/samples", params={"limit": limit, "fingerprint": fingerprint}, timeout=TIMEOUT_S,
                headers={"Authorization": f"Bearer {replica.token}"} if replica.token else {}, trust_env=False,
            ).raise_for_status()  # fmt: skip
        except httpx.HTTPError:
            continue
        found += [np.frombuffer(base64.b64decode(s["vector"]), "<f4") for s in answer.json()["samples"]]
    return np.stack(found[:limit]) if found else np.zeros((0, 0), np.float32)
