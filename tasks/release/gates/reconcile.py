"""Exact reconciliation of catalogue and index as set arithmetic over keys."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.index.searcher import Searcher
from tasks.catalog.snapshot import Snapshot, product_table
from tasks.release.gates.comparison import Reconciliation


def reconcile(searcher: Searcher, catalogue: pa.Table, quarantined: np.ndarray | int) -> Reconciliation:
    """Missing, unexpected and duplicate products. `catalogue` (product_id, key) is the complete expected set.

    `quarantined`: keys (n,) int64 of the products without a usable picture; or only how many there are, where their keys are
    not known: then products that cannot be found are named once there are more of them than that.
    """
    features, live = searcher.features, searcher.live()
    keys = catalogue["key"].to_numpy()
    servable, counts = np.unique(features.key[live], return_counts=True)
    absent = ~np.isin(keys, servable)
    bad = np.zeros(0, np.int64) if isinstance(quarantined, int) else np.asarray(quarantined, np.int64)
    missing = absent & ~np.isin(keys, bad)
    if isinstance(quarantined, int) and int(missing.sum()) <= quarantined:
        missing[:] = False
    strange = live & ~np.isin(features.key, keys)
    twice = live & (np.isin(features.key, servable[counts > 1]) | np.isin(features.key, bad))
    return Reconciliation(
        _ids(catalogue, missing), _ids(features.table, strange), tuple(dict.fromkeys(_ids(features.table, twice)))
    )


def catalogue_now(snapshot: Snapshot, ledger: pa.Table) -> pa.Table:
    """(product_id, key) of a snapshot's products after applying a ledger (tasks/catalog/changes/ledger.py)."""
    products = product_table(snapshot.uri, ["product_id", "key"])
    untouched = products.filter(pc.invert(pc.is_in(products["key"], ledger["key"].combine_chunks())))
    upserts = ledger.filter(pc.not_equal(ledger["kind"], "delete")).select(["product_id", "key"])
    return pa.concat_tables([untouched, upserts])


def _ids(table: pa.Table, chosen: np.ndarray) -> tuple[str, ...]:
    return tuple(table["product_id"].take(pa.array(np.flatnonzero(chosen))).to_pylist())
