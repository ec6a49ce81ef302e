"""Publishes features to Redis if VITRINE_REDIS_URL is set: loaded before a version goes live, switched with `live`.

Search results do not depend on it: each version carries its own features in its segments. An unavailable Redis is therefore
reported in one sentence and blocks nothing.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.manifest import IndexManifest
from serving.contract.segments import read_rows
from tasks import storage
from tasks.errors import VitrineError
from tasks.pipelines.common import registry, settings
from tasks.pipelines.index_records import LoadedFeatures, RefreshPlan, RegisteredVersion
from tasks.registry import INDEX_MODEL, Registry

if TYPE_CHECKING:
    from tasks.embed.features import FeatureStore

log = logging.getLogger(__name__)

VOLATILE = ("price", "in_stock", "popularity")
"""What may be refreshed between versions: it changes often, and no vector depends on it."""
BATCH_ROWS = 20_000


def load(registered: RegisteredVersion) -> LoadedFeatures:
    """Loads a version's features: its base once for all versions on it, then the differences."""
    chosen = settings()
    if not chosen.redis_url:
        return LoadedFeatures(0, "no feature store is set (VITRINE_REDIS_URL)")
    if not registered.passed:
        return LoadedFeatures(0, f"version {registered.version} did not pass its gates")
    from tasks.embed.features import FeatureStore

    count = _load(FeatureStore.connect(chosen.redis_url), registry(chosen), registered.version)
    summary = f"features of version {registered.version}: {count} products that differ from its base are in Redis"
    log.info("%s", summary)
    return LoadedFeatures(count, summary)


def switch_features() -> str:
    """Switches the feature store to the live version; returns what happened, "" without a feature store."""
    chosen = settings()
    if not chosen.redis_url:
        return ""
    from redis import RedisError

    from tasks.embed.features import FeatureStore

    models = registry(chosen)
    live = models.aliases(INDEX_MODEL).get("live", "")
    if not live:
        return ""
    try:
        store = FeatureStore.connect(chosen.redis_url)
        _load(store, models, live)
        before = store.switch(live)
    except (VitrineError, RedisError) as error:
        log.warning("features of version %s are not live: %s", live, error)
        return f"features of version {live} are not live: {error}"
    if before != live:
        log.info("features of version %s are live in Redis", live)
    return f"features of version {live} are live"


def refresh(plan: RefreshPlan) -> LoadedFeatures:
    """Updates volatile fields of changed products in the live version's features, ahead of the next version."""
    chosen = settings()
    if not chosen.redis_url:
        return LoadedFeatures(0)
    from tasks.catalog.changes.drain import event_of
    from tasks.embed.features import FeatureStore

    store = FeatureStore.connect(chosen.redis_url)
    live = store.live()
    rows = storage.read_table(storage.join(plan.uri, "rows.parquet")).to_pylist()
    products = [(row["key"], event_of(row).product) for row in rows if row["kind"] == "upsert"]
    fields = [{"key": key} | {n: product[n] for n in VOLATILE if n in product} for key, product in products]
    count = store.refresh(live, [f for f in fields if len(f) > 1]) if live else 0
    log.info("price, stock or popularity of %d products refreshed in version %s's features", count, live)
    return LoadedFeatures(count)


def base_name(manifest: IndexManifest) -> str:
    """Name of a version's base by content, shared by all versions on it."""
    digests = sorted(s.table.sha256 for s in manifest.segments if s.kind == "base")
    return f"base-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}"


def _load(store: "FeatureStore", models: Registry, version: str) -> int:
    manifest = models.index_manifest(version)
    base = base_name(manifest)
    bases = [s for s in manifest.segments if s.kind == "base"]

    def rows() -> Iterator[pa.RecordBatch]:
        for segment in bases:
            yield from pq.ParquetFile(models.file(segment.table)).iter_batches(BATCH_ROWS)

    store.load(base, rows(), sum(s.rows for s in bases))
    changed, gone = _differences(models, manifest)
    return store.load(version, changed.to_batches(BATCH_ROWS) if changed is not None else [], len(changed or ()), base, gone)


def _differences(models: Registry, manifest: IndexManifest) -> tuple[pa.Table | None, list[int]]:
    """Live rows of the deltas, and keys hidden by tombstones and not shown by a later delta."""
    stones = [
        (s.shard, s.sequence, read_rows(models.file(s.table))["key"].to_numpy())
        for s in manifest.segments
        if s.kind == "tombstones"
    ]
    tables = []
    for segment in manifest.segments:
        if segment.kind == "delta":
            table = read_rows(models.file(segment.table))
            later = [keys for shard, sequence, keys in stones if shard == segment.shard and sequence > segment.sequence]
            tables.append(table.filter(pa.array(~np.isin(table["key"].to_numpy(), np.concatenate(later)))) if later else table)
    changed = pa.concat_tables(tables, promote_options="default") if tables else None
    hidden = np.unique(np.concatenate([keys for *_, keys in stones])) if stones else np.zeros(0, np.int64)
    shown = changed["key"].to_numpy() if changed is not None else np.zeros(0, np.int64)
    return changed, hidden[~np.isin(hidden, shown)].tolist()
