"""Evaluates a version for its gates: end to end, under load, against exact search, by reconciliation, and against live."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import ContractError
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.versions.release import Release
from tasks.catalog.snapshot import Snapshot, product_batches, product_table
from tasks.index.ground_truth import GroundTruth, recall_against
from tasks.index.tune import keys_of, stored_truth
from tasks.queries.query_words import kind_name
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.delta_share import delta_share
from tasks.release.gates.comparison import Comparison, Reconciliation
from tasks.release.gates.end_to_end_eval import Query, held_by, measure, query_set_of, read_photos
from tasks.release.gates.index_gates import Decision, K, Measurements, Policy, decide
from tasks.release.gates.load_test import run_load_test
from tasks.release.gates.reconcile import reconcile
from tasks.release.promotion.replay import churn, collect_samples, replay_queries, top_ids
from tasks.release.promotion.serving_replicas import Replica

LOAD_PHOTOS = 200
CHURN_QUERIES = 200
Evaluation = tuple[Decision, Measurements]
GroundTruthOf = Callable[[np.ndarray], GroundTruth]


def evaluate_version(
    release: Release, live: Release | None, snapshot: Snapshot, queries: list[Query], policy: Policy, replicas: Sequence[Replica],
    read_at: datetime, now: datetime, catalogue: pa.Table | None = None, quarantined: np.ndarray | int | None = None,
    truth_of: GroundTruthOf | None = None,
) -> Evaluation:  # fmt: skip
    """The gate decision on a candidate against the live version, and the measurements behind it.

    `catalogue` (product_id, key) is what the version should know where that is not its snapshot (see `reconcile.catalogue_now`), `read_at`
    when it was read; `quarantined`: see `reconcile` (default: the manifest's count). `replicas` give sampled real queries. `truth_of`
    finds the exact nearest by the encoder's own vectors, where these are all at hand; else what the index stores is compared.
    """
    photos = read_photos(snapshot, queries[:: max(1, len(queries) // LOAD_PHOTOS)][:LOAD_PHOTOS])
    known = product_table(snapshot.uri, ["product_id", "key"]) if catalogue is None else catalogue
    lacking = release.manifest.counts.quarantined if quarantined is None else quarantined
    candidate = replace(
        measure_version(release, snapshot, queries, photos, truth_of),
        reconciled=reconcile(release.searcher, known, lacking),
        age_h=(now - read_at).total_seconds() / 3600,
        compared=_compared(release, live, photos, replicas, kind_name(query_set_of(queries))) if live is not None else None,
    )
    before = measure_version(live, snapshot, held_by(queries, live.searcher), []) if live is not None else None
    return decide(candidate, before, policy), candidate


def measure_version(
    release: Release, snapshot: Snapshot, queries: list[Query], photos: Sequence[bytes], truth_of: GroundTruthOf | None = None
) -> Measurements:
    """A version's own measurements: `queries` sequentially, and `photos` (bytes) under load."""
    path = measure(release, snapshot, queries)
    searcher = release.searcher
    recall = 1.0
    if len(path.vectors):
        recall = first_phase_recall(release, path.vectors, truth_of(path.vectors) if truth_of else None)
    load = run_load_test(release, photos)
    return Measurements(
        ranks={q.photo_uri: int(r) for q, r in zip(path.queries, path.ranks, strict=True)},
        categories=_categories(snapshot, path.queries),
        exact_recall_at_10=recall,
        p50_ms=float(np.percentile(path.ms, 50)) if len(path.ms) else 0.0,
        p99_ms=load.percentile(99),
        qps=load.qps,
        clients=load.clients,
        memory_mb=memory_bytes(release) / 2**20,
        counts=release.manifest.counts.model_copy(update={"servable": searcher.live_rows}),
        rows=searcher.rows,
        hidden=searcher.rows - searcher.live_rows,
        pictures=searcher.live_vectors,
        titles=searcher.live_titles,
        delta_share=delta_share(release.manifest),
        reconciled=Reconciliation(),
    )


def first_phase_recall(release: Release, xq: np.ndarray, truth: GroundTruth | None = None) -> float:
    """Recall@10 of the first phase for unit queries xq (nq, d), by key, against `truth` or exact search over stored vectors."""
    found = release.searcher.search(xq, max(release.candidates, K))
    return recall_against(keys_of(release.searcher, found.rows)[:, :K], truth or stored_truth(release.searcher, xq), K)


def memory_bytes(release: Release) -> int:
    """Memory of a version in a replica: FAISS files, feature columns, which picture is whose, and the query encoder's file."""
    files = sum(s.index.bytes for s in release.manifest.segments if s.index is not None)
    query = release.encoders.manifest.variant(release.manifest.encoder.query).file.bytes
    pictures = sum(s.pictures.nbytes for s in release.searcher.segments if s.pictures is not None)
    return files + release.searcher.features.table.nbytes + pictures + query


def open_live(registry: Registry, runtime: Runtime = ONNXRUNTIME) -> Release | None:
    """Opens the live version; None when nothing is live or it cannot be opened any more."""
    live = registry.alias(INDEX_MODEL, "live")
    if live is None:
        return None
    try:
        return open_version(registry, live.version, runtime)
    except ContractError:
        return None


def open_version(registry: Registry, version: str, runtime: Runtime = ONNXRUNTIME) -> Release:
    """Opens a registered version, its files fetched once and verified."""
    manifest = registry.index_manifest(version)
    encoder = registry.encoder_folder(manifest.encoder.version)
    return Release.open(version, manifest, encoder, registry.file, runtime=runtime, endpoint=registry.endpoint)


def _compared(release: Release, live: Release, photos: Sequence[bytes], replicas: Sequence[Replica], asked: str) -> Comparison:
    queries = replay_queries(release, live, collect_samples(replicas, CHURN_QUERIES), photos, CHURN_QUERIES, asked)
    assert queries.live_vectors is not None
    before, now = live.searcher.live(), release.searcher.features.key[release.searcher.live()]
    gone = before & ~np.isin(live.searcher.features.key, now)
    lost = live.searcher.features.table["product_id"].take(pa.array(np.flatnonzero(gone))).to_pylist()
    return Comparison(
        queries=len(queries),
        origin=queries.origin,
        churn=churn(top_ids(release, queries.vectors), top_ids(live, queries.live_vectors)),
        encoder_before=live.manifest.encoder.version,
        encoder_now=release.manifest.encoder.version,
        lost=tuple(lost),
        products_before=live.searcher.live_rows,
    )


def _categories(snapshot: Snapshot, queries: Sequence[Query]) -> dict[str, str]:
    """The most general category of each photo's product."""
    wanted = pa.array(sorted({q.product_id for q in queries}), pa.string())
    of: dict[str, str] = {}
    for batch in product_batches(snapshot.uri, ["product_id", "category"]):
        rows = batch.filter(pc.is_in(batch["product_id"], wanted)).to_pylist()
        of |= {r["product_id"]: (r["category"] or [""])[0] for r in rows}
    return {q.photo_uri: of.get(q.product_id, "") for q in queries}
