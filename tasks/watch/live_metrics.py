"""Measures the live version: opens it as a replica does, runs real queries, and compares with its references."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.versions.release import Release
from tasks import storage
from tasks.catalog.snapshot import read_snapshot
from tasks.embed.run_record import CORES, IMAGES, SECONDS
from tasks.index.delta import compaction_due
from tasks.queries.query_words import kind_name
from tasks.registry import INDEX_EXPERIMENT, INDEX_MODEL, Registry
from tasks.release.delta_share import delta_share
from tasks.release.gates.end_to_end_eval import held_out_queries, of_today, query_set_of, query_vectors
from tasks.release.gates.evaluate import first_phase_recall, open_version
from tasks.release.promotion.blue_green import LIVE_AT
from tasks.release.promotion.serving_replicas import Replica
from tasks.watch.checks import Figures
from tasks.watch.cost import Prices, Work, cost
from tasks.watch.drift import LEAST, Drift, Reference, drift, load, reference, save
from tasks.watch.freshness import Delivery, delays_s, freshness, newest_change_s
from tasks.watch.replica_metrics import read_counters, sampled_queries

log = logging.getLogger(__name__)

QUERIES = 300
LEAST_REAL = 20
"""Fewer real queries say less of recall than held-out photos, or views, do."""
ROWS = 4000
RECENT_VERSIONS = 24


@dataclass(frozen=True)
class LiveMetrics:
    """The figures, and the drifts with their references for the plots."""

    figures: Figures
    drifts: dict[str, tuple[Drift, Reference]]


def measure_live(registry: Registry, replicas: Sequence[Replica], store: str, prices: Prices, now_s: float) -> LiveMetrics:
    """Measures the live version. Raises VitrineError when nothing is live, ContractError when it cannot be opened.

    The first look with an encoder keeps what it sees as the reference of later ones, below <store>/watch.
    """
    live = registry.require_alias(INDEX_MODEL, "live")
    release = open_version(registry, live.version)
    manifest, searcher = release.manifest, release.searcher
    notes: list[str] = []
    sampled = sampled_queries(replicas, manifest.encoder.query_fingerprint, QUERIES)
    real = len(sampled) >= LEAST_REAL
    xq, asked = (sampled, "real queries") if real else _held_out(release)
    if not real:
        notes.append(
            f"recall is measured on {asked}, because the replicas sampled {len(sampled)} real queries and {LEAST_REAL} are needed"
        )
    recall = _recall(release, xq)
    drifts, unmeasured = _drifts(release, sampled, storage.join(store, "watch", manifest.encoder.document_fingerprint[:12]))
    notes += unmeasured
    told = read_counters(replicas)
    recent = [v for v in registry.versions(INDEX_MODEL, RECENT_VERSIONS) if not v.tags.get("verdict", "").startswith("failed")]
    delivered = [Delivery(registry.manifest_of(v), float(v.tags.get(LIVE_AT) or v.created_ms / 1e3)) for v in recent]
    stones = sum(s.rows for s in manifest.segments if s.kind == "tombstones")
    changed = newest_change_s(searcher.features.table["updated_at"], searcher.live())
    figures = Figures(
        version=live.version,
        encoder=manifest.encoder.version,
        queries=len(xq),
        real=real,
        asked=asked,
        recall=recall,
        embedding_drift=_beyond_chance(drifts, "embedding"),
        query_drift=_beyond_chance(drifts, "query"),
        delta_share=delta_share(manifest),
        tombstone_share=stones / max(searcher.rows, 1),
        compaction=compaction_due(manifest.segments),
        freshness=freshness(now_s, changed, delays_s(delivered, registry.file)),
        hit_rates={name: told.hit_rate(name) for name in sorted(told.lookups)},
        requests=told.requests,
        error_share=told.errors / max(told.requests, 1.0),
        p99_ms=told.quantile_ms(0.99),
        silent=told.silent,
        cost_per_million_products=cost(embedding_work(registry), 1e6, prices),
        cost_per_thousand_queries=cost(Work(told.searches, told.busy_s), 1e3, prices),
        notes=tuple(notes),
    )  # fmt: skip
    return LiveMetrics(figures, drifts)


def embedding_work(registry: Registry) -> Work:
    """The work of the latest run that embedded something, as measured by the embedding step."""
    found = registry.latest_metrics(INDEX_EXPERIMENT, IMAGES, (IMAGES, SECONDS, CORES))
    return Work(found[IMAGES], found[SECONDS], found.get(CORES, 1.0)) if found else Work(0, 0)


def _recall(release: Release, xq: np.ndarray) -> float:
    return first_phase_recall(release, xq) if len(xq) else 1.0


def _held_out(release: Release) -> tuple[np.ndarray, str]:
    """Vectors (n, d) of the snapshot's queries, and what these are."""
    snapshot = read_snapshot(release.manifest.snapshot.uri)
    queries = of_today(held_out_queries(snapshot, QUERIES), snapshot, release.searcher)
    found = query_vectors(release.encoders, release.manifest.encoder.query, snapshot, queries)
    return found, kind_name(query_set_of(queries))


def _drifts(release: Release, sampled: np.ndarray, uri: str) -> tuple[dict[str, tuple[Drift, Reference]], list[str]]:
    """Drift of the live vectors and of the sampled queries from the references below `uri`, and notes on what is not measured."""
    drifts: dict[str, tuple[Drift, Reference]] = {}
    notes: list[str] = []
    searcher = release.searcher
    rows = np.flatnonzero(searcher.depicted())  # what titles are like says nothing about pictures
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))] if len(rows) else rows
    vectors = np.stack([searcher.vector(int(r)) for r in chosen]) if len(chosen) else np.zeros((0, searcher.dim), np.float32)
    for name, found in (("embedding", vectors), ("query", sampled)):
        if len(found) < LEAST:
            notes.append(f"{name} drift is not measured: {len(found)} vectors, {LEAST} are needed")
            continue
        base = load(storage.join(uri, f"{name}.npz"))
        if base is None:
            base = reference(found)
            save(base, storage.join(uri, f"{name}.npz"))
            version = release.manifest.encoder.version
            notes.append(
                f"{name} drift is measured from the next time on: this first measurement with encoder version {version} is its reference"
            )
        drifts[name] = (drift(found, base), base)
    return drifts, notes


def _beyond_chance(drifts: dict[str, tuple[Drift, Reference]], name: str) -> float | None:
    if name not in drifts:
        return None
    seen = drifts[name][0]
    return max(0.0, seen.index - seen.noise)
