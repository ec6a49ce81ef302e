"""Builds events from catalogue rows or files, for `vitrine changes send`."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.catalog.changes.event import Event, upsert
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.schema import PRODUCT_SCHEMA, RowLimits, read_products
from tasks.catalog.sources import SourceOptions, open_source
from tasks.catalog.sources.folder import csv_batches, parquet_batches
from tasks.errors import CatalogError


def events_of_catalogue(
    catalog_uri: str, product_ids: Sequence[str], now: datetime, options: SourceOptions | None = None
) -> list[Event]:
    """Upserts of these products as the catalogue has them, timed `now`. Raises CatalogError for an unknown or unusable one."""
    wanted = set(product_ids)
    if not wanted:
        return []
    found: dict[str, Event] = {}
    limits = (options or SourceOptions()).limits
    with open_source(catalog_uri, options) as source:
        for batch in source.products():
            rows = read_products(batch, source.name, limits)
            for bad in rows.unusable:
                if bad.product_id in wanted:
                    raise CatalogError(f"{source.name}: {bad.sentence}")
            chosen = rows.table.filter(pa.array([i in wanted for i in rows.table["product_id"].to_pylist()], pa.bool_()))
            found |= {e.product_id: e for e in _events(chosen, now, limits)}
    missing = sorted(wanted - set(found))
    if missing:
        raise CatalogError(f"the catalogue has no product {missing[0]!r}; to say that it is gone: vitrine changes send --delete")
    return [found[i] for i in product_ids]


def events_of_file(path: Path, now: datetime, options: SourceOptions | None = None) -> list[Event]:
    """Upserts of the products in a CSV or Parquet file (product_id, title, image, …), timed `now` without `updated_at`.

    Raises CatalogError naming the first row that cannot be used.
    """
    if not path.is_file():
        raise CatalogError(f"{path}: there is no such file")
    rejected: list[str] = []
    options = options or SourceOptions()
    found: list[Event] = []
    numeric = options.columns.numeric
    batches = csv_batches(path, options.csv, rejected, numeric) if path.suffix == ".csv" else parquet_batches(path)
    for batch in options.columns.over(batches, str(path), {}):
        rows = read_products(batch, str(path), options.limits)
        wrong = rejected + [bad.sentence for bad in rows.unusable]
        if wrong:
            raise CatalogError(f"{path}: {wrong[0]}")
        found += _events(rows.table, None if "updated_at" in batch.schema.names else now, options.limits)
    if rejected:
        raise CatalogError(f"{path}: {rejected[0]}")
    return found


def _events(products: pa.Table, now: datetime | None, limits: RowLimits) -> Iterator[Event]:
    """Upserts of snapshot rows; `now` replaces their own time, which a catalogue may lack."""
    for row in products.to_pylist():
        yield row_event(row, row["updated_at"] if now is None else now, limits)


def row_event(row: dict[str, Any], at: datetime, limits: RowLimits) -> Event:
    """The upsert of a snapshot row. Raises MalformedEvent for what a snapshot would have set aside."""
    return upsert(row["product_id"], at, {n: v for n, v in row.items() if _said(n, v)}, limits)


def _said(name: str, value: Any) -> bool:
    return (
        value is not None
        and name not in ("product_id", "key", "updated_at")
        and not (name == IMAGES and not value)
        and (value != "" or name not in PRODUCT_SCHEMA.names)
    )
