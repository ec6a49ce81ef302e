"""The ledger of an index version: one row per product that changed since its base.

Ledgers of different versions may be joined in any order and any number of times: of two rows about one product the later one
stays. That is what makes duplicates, reordering, replays and two makers of versions at once harmless.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import FileRef
from serving.contract.keys import product_keys
from serving.contract.manifest import IndexManifest
from serving.contract.segments import read_rows
from tasks.catalog.changes.event import DELETE, Event
from tasks.catalog.schema import UPDATED_AT

INDEXED, QUARANTINED, DELETED = "indexed", "quarantined", "deleted"
SCHEMA = pa.schema([
    ("key", pa.int64()), ("product_id", pa.string()), ("kind", pa.string()), ("updated_at", UPDATED_AT), ("digest", pa.string()),
    ("received_at", UPDATED_AT), ("event", pa.string()), ("in_snapshot", pa.bool_()), ("in_base", pa.bool_()),
    ("state", pa.string()),
])  # fmt: skip
"""`in_snapshot`, `in_base`: whether the base's snapshot has the product, and its base segments. `state`: what became of the change."""
SKEW = timedelta(minutes=10)
"""By how much the clocks of two of our machines may differ: what arrived so shortly before a snapshot is looked at again."""
MEMORY = timedelta(days=7)
"""How long a delete is remembered after a rebuild, so that an older upsert that arrives later does not bring the product back."""


def entries(events: Sequence[Event], received_at: datetime) -> pa.Table:
    """Events received at one time as ledger rows (SCHEMA), without snapshot, base and state."""
    count = len(events)
    return pa.table({
        "key": product_keys(e.product_id for e in events), "product_id": [e.product_id for e in events],
        "kind": [e.kind for e in events], "updated_at": [e.updated_at for e in events], "digest": [e.digest for e in events],
        "received_at": [received_at] * count, "event": [e.text for e in events], "in_snapshot": [None] * count,
        "in_base": [None] * count, "state": [None] * count,
    }, SCHEMA)  # fmt: skip


def latest_changes(tables: Iterable[pa.Table]) -> pa.Table:
    """The last change of each product in order of key; among equal ones the one of a later table, or received first."""
    parts = [t.append_column("place", pa.repeat(n, len(t))) for n, t in enumerate(tables)]
    if not parts:
        return SCHEMA.empty_table()
    whole = pa.concat_tables(parts)
    whole = whole.append_column("gone", pc.equal(whole["kind"], DELETE))
    ascending = [(name, "ascending") for name in ("key", "updated_at", "gone", "digest", "place")]
    whole = whole.sort_by([*ascending, ("received_at", "descending")])
    keys = whole["key"].to_numpy()
    last = np.ones(len(keys), bool)
    last[:-1] = keys[1:] != keys[:-1]
    return whole.filter(pa.array(last)).select(SCHEMA.names).combine_chunks()


def ledger_of(manifest: IndexManifest, locate: Callable[[FileRef], Path]) -> pa.Table:
    """The ledger of an index version, merged from its files as `locate` finds them."""
    return latest_changes(read_rows(locate(ref)) for ref in manifest.changes)


def deleted_products(ledger: pa.Table) -> list[str]:
    """Ids of the products whose last change is a delete."""
    return ledger.filter(pc.equal(ledger["kind"], DELETE))["product_id"].to_pylist()


def newer(rows: pa.Table, held: pa.Table, products: pa.Table) -> pa.Table:
    """The rows newer than the ledger `held` and the base's snapshot (`products`: key, updated_at)."""
    marks = [(rows.drop_columns("state"), False), (held.drop_columns("state"), True)]
    joined = latest_changes(t.append_column("state", pa.repeat("old" if old else "", len(t))) for t, old in marks)
    new = joined.filter(pc.equal(joined["state"], ""))
    places = pc.index_in(new["key"], products["key"])
    there = pc.take(products["updated_at"].combine_chunks(), places)
    later = pc.or_(
        pc.greater(new["updated_at"], there), pc.and_(pc.equal(new["kind"], DELETE), pc.equal(new["updated_at"], there))
    )
    # What the ledger already says of a product is newer than the snapshot, and so is what is newer than that.
    return _without_state(new.filter(pc.or_(pc.fill_null(later, True), pc.is_in(new["key"], held["key"]))))


def carry_over(rows: pa.Table, products: pa.Table, snapshot_started: datetime, now: datetime) -> pa.Table:
    """The rows of other versions' ledgers that still apply on a base whose snapshot began at `snapshot_started`.

    A change that arrived before the snapshot was in the catalogue when it was copied, so the snapshot knows better; but its
    deletes are remembered for a while.
    """
    since = pc.greater_equal(rows["received_at"], pa.scalar(snapshot_started - SKEW, UPDATED_AT))
    return _without_state(rows.filter(pc.or_(since, _remembered_deletes(rows, products, now))))


def delete_markers(rows: pa.Table, products: pa.Table, snapshot_started: datetime) -> pa.Array:
    """Mask (n,) bool of rows that only remember a delete of a product unknown to the snapshot."""
    before = pc.less(rows["received_at"], pa.scalar(snapshot_started - SKEW, UPDATED_AT))
    unknown = pc.invert(pc.is_in(rows["key"], products["key"]))
    return pc.and_(before, pc.and_(pc.equal(rows["kind"], DELETE), unknown))


def _remembered_deletes(rows: pa.Table, products: pa.Table, now: datetime) -> pa.Array:
    young = pc.greater(rows["received_at"], pa.scalar(now - MEMORY, UPDATED_AT))
    unknown = pc.invert(pc.is_in(rows["key"], products["key"]))
    return pc.and_(young, pc.and_(pc.equal(rows["kind"], DELETE), unknown))


def _without_state(rows: pa.Table) -> pa.Table:
    """The rows with in_snapshot, in_base and state reset to null."""
    for name in ("in_snapshot", "in_base", "state"):
        field = SCHEMA.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.nulls(len(rows), field.type))
    return rows.select(SCHEMA.names)
