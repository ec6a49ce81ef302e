"""The quarantine: pictures that cannot be used and products without a usable one, with their reasons, one file per run."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import storage
from tasks.catalog.schema import UPDATED_AT
from tasks.catalog.snapshot import product_batches

SCHEMA = pa.schema([
    ("key", pa.int64()), ("product_id", pa.string()), ("image_uri", pa.string()), ("reason", pa.string()), ("detail", pa.string()),
    ("run", pa.string()), ("at", UPDATED_AT), ("position", pa.int16()), ("found", pa.bool_()),
])  # fmt: skip
NAMED = 5
"""As many products are named in a run's summary; `vitrine trace` and the quarantine's file have all of them."""


@dataclass(frozen=True)
class QuarantineEntry:
    """One picture that cannot be used. `reason` is a short code, `detail` a sentence; `run` is the run's key.

    `position` is 0 for the product's main picture, i for images[i - 1]; `found` whether the product has another picture that can be
    used, and so is not in quarantine itself. Files of before say neither `product_id` ("") nor when (`at` None).
    """

    key: int
    product_id: str
    image_uri: str
    reason: str
    detail: str
    run: str
    at: datetime | None
    position: int = 0
    found: bool = False

    @property
    def sentence(self) -> str:
        """Reason, run and time in one sentence."""
        when = f" at {self.at:%Y-%m-%d %H:%M} UTC" if self.at else ""
        return f"{self.detail} ({self.reason}), in run {self.run}{when}"


def quarantine_uri(store_uri: str, run_key: str) -> str:
    """The quarantine file of a run: <store>/quarantine/<run>.parquet with the columns of SCHEMA."""
    return storage.join(store_uri, "quarantine", f"{run_key}.parquet")


def read_quarantine(
    store_uri: str, run_keys: Iterable[str] | None = None, key: int | None = None, pictures: bool = False
) -> list[QuarantineEntry]:
    """Entries of these runs (default: all stored), newest first; with `key`, of that product only.

    One for each product in quarantine, that of its main picture; with `pictures`, one for each picture that cannot be used.
    """
    if run_keys is None:
        uris = storage.list_files(storage.join(store_uri, "quarantine"), ".parquet")
    else:
        uris = [uri for uri in (quarantine_uri(store_uri, run) for run in run_keys) if storage.exists(uri)]
    rows: list[QuarantineEntry] = []
    for uri in uris:
        table = storage.read_table(uri)
        if key is not None:
            table = table.filter(pa.array(table["key"].to_numpy() == key))
        if not pictures and "found" in table.column_names:
            table = table.filter(quarantined_products(table))
        blank = {"product_id": "", "at": None, "position": 0, "found": False}
        rows += [
            QuarantineEntry(**(blank | {name: row[name] for name in SCHEMA.names if name in row})) for row in table.to_pylist()
        ]
    return sorted(rows, key=lambda row: (row.at or datetime.min.replace(tzinfo=UTC), row.run), reverse=True)


def quarantine_rows(
    bad: pa.Table, embedded: pa.Array, rejected: dict[bytes, dict[str, str]], snapshot_uri: str, run_key: str
) -> list[dict[str, Any]]:
    """Rows (SCHEMA) of pictures that have no vector (worker.HASHED); `embedded` are the keys of products with another one that has.

    The reason is the hashing step's without a sha256, else the store's (`rejected`, by sha256).
    """
    unknown: dict[str, Any] = {"reason": "unknown", "detail": "no worker told what became of this picture"}
    bad = bad.append_column("found", pc.is_in(bad["key"], embedded))
    now, rows = datetime.now(UTC), []
    for row in bad.to_pylist():
        why = row if row["reason"] else rejected.get(row["sha256"], unknown)
        rows.append(
            {n: row[n] for n in ("key", "image_uri", "position", "found")}
            | {"reason": why["reason"], "detail": why["detail"], "run": run_key, "at": now}
        )
    return with_ids(rows, snapshot_uri)


def quarantined_products(rows: pa.Table) -> pa.Array:
    """Mask (n,) bool of rows that stand for a product in quarantine: its main picture's."""
    return pc.and_(pc.equal(rows["position"], 0), pc.invert(rows["found"]))


def quarantined_keys(uri: str) -> np.ndarray:
    """Keys (n,) int64 of the products in a run's quarantine file; those of before hold products alone."""
    rows = storage.read_table(uri)
    return (rows.filter(quarantined_products(rows)) if "found" in rows.column_names else rows)["key"].to_numpy()


def with_ids(rows: list[dict], snapshot_uri: str) -> list[dict]:
    """Adds `product_id` from the snapshot to rows with a `key`, in order of product_id."""
    by_key: dict[int, list[dict]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    keys = np.fromiter(by_key, np.int64, len(by_key))
    named: list[dict] = []
    for batch in product_batches(snapshot_uri, ["product_id", "key"]) if rows else ():
        found = batch.filter(pa.array(np.isin(batch["key"].to_numpy(), keys)))
        named += [entry | row for row in found.to_pylist() for entry in by_key[row["key"]]]
    return named


def sample_reasons(rows: list[dict]) -> list[str]:
    """The first few quarantined products with reasons, for a summary: "p1 (missing)"."""
    shown = [f"{row['product_id']} ({row['reason']})" for row in rows[:NAMED]]
    return shown + ([f"and {len(rows) - NAMED} more"] if len(rows) > NAMED else [])
