"""Measuring a version for its gates: the whole path on photos, recall against exact search, and exact reconciliation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import ContractError, FileRef
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.release import Release
from tasks.catalog.snapshot import Snapshot, product_table
from tasks.index.metrics import hit_at, neighbour_recall
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.gates import Measured
from tasks.release.whole_path import Query, measure

K = 10


def measured(
    release: Release, snapshot: Snapshot, queries: list[Query], reconcile: bool = True, catalogue: pa.Table | None = None
) -> Measured:
    """A version's figures on these photos; `reconcile` compares what is servable with the catalogue, product by product.

    `catalogue` (product_id, key) is what the version should know where that is not its snapshot: see `catalogue_now`.
    """
    path = measure(release, snapshot, queries)
    searcher = release.searcher
    recall = 1.0
    if len(path.vectors):
        found = searcher.search(path.vectors, release.candidates).similarity
        recall = neighbour_recall(found, searcher.exact(path.vectors, K).similarity, K)
    percentiles = np.percentile(path.ms, [50, 99]) if len(path.ms) else (0.0, 0.0)
    return Measured(
        photos=len(path.queries),
        recall_at_1=hit_at(path.ranks, 1),
        recall_at_10=hit_at(path.ranks, K),
        exact_recall_at_10=recall,
        p50_ms=float(percentiles[0]),
        p99_ms=float(percentiles[1]),
        counts=release.manifest.counts.model_copy(update={"servable": searcher.live_rows}),
        gap=gap(release, product_table(snapshot.uri, ["product_id", "key"]) if catalogue is None else catalogue)
        if reconcile
        else (),
    )


def catalogue_now(snapshot: Snapshot, ledger: pa.Table) -> pa.Table:
    """(product_id, key) of a snapshot's products after the changes of a ledger (tasks/catalog/changes/ledger.py, one row each)."""
    products = product_table(snapshot.uri, ["product_id", "key"])
    untouched = products.filter(pc.invert(pc.is_in(products["key"], ledger["key"].combine_chunks())))
    upserts = ledger.filter(pc.not_equal(ledger["kind"], "delete")).select(["product_id", "key"])
    return pa.concat_tables([untouched, upserts])


def gap(release: Release, catalogue: pa.Table) -> tuple[str, ...]:
    """Product ids that are servable and not in the catalogue, or, beyond the quarantined ones, in it and not servable."""
    ids, keys = np.array(catalogue["product_id"].to_pylist()), catalogue["key"].to_numpy()
    features, live = release.searcher.features, release.searcher.live()
    servable = features.key[live]
    strange = np.flatnonzero(~np.isin(features.key, keys) & live)
    missing = ids[~np.isin(keys, servable)]
    names = [r["product_id"] for r in features.take(strange, ["product_id"])]
    if len(missing) > release.manifest.counts.quarantined:
        names += list(missing)
    doubled = len(servable) - len(np.unique(servable))
    return tuple(names) + ((f"{doubled} products twice",) if doubled else ())


def measure_live(
    registry: Registry, cache: Path, snapshot: Snapshot, queries: list[Query], runtime: Runtime = ONNXRUNTIME
) -> Measured | None:
    """The live version on the same photos; None when nothing is live yet or it can no longer be opened."""
    live = registry.alias(INDEX_MODEL, "live")
    if live is None:
        return None
    try:
        return measured(open_version(registry, live.version, cache, runtime), snapshot, queries, reconcile=False)
    except ContractError:
        return None


def open_version(registry: Registry, version: str, cache: Path, runtime: Runtime = ONNXRUNTIME) -> Release:
    """A registered version, its files fetched into `cache` by sha256 and verified."""
    manifest = registry.index_manifest(version)

    def locate(ref: FileRef) -> Path:
        path = cache / ref.sha256
        if not path.is_file():
            fetched = registry.fetch(ref.run_id, ref.path, cache / "incoming")
            fetched.replace(path)
        return path

    return Release.open(version, manifest, registry.encoder_folder(manifest.encoder.version), locate, runtime=runtime)
