"""Builds events from catalogue rows or files, for `vitrine changes send`."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tasks.catalog.changes.event import Event, upsert
from tasks.catalog.schema import PRODUCT_SCHEMA, to_products
from tasks.catalog.sources import open_source
from tasks.errors import CatalogError


def events_of_catalogue(catalog_uri: str, product_ids: Sequence[str], now: datetime) -> list[Event]:
    """Upserts of these products as the catalogue has them, timed `now`. Raises CatalogError for an unknown id."""
    wanted = set(product_ids)
    if not wanted:
        return []
    found: dict[str, Event] = {}
    with open_source(catalog_uri) as source:
        for batch in source.products():
            found |= {e.product_id: e for e in _events(to_products(batch, source.name), now) if e.product_id in wanted}
    missing = sorted(wanted - set(found))
    if missing:
        raise CatalogError(f"the catalogue has no product {missing[0]!r}; to say that it is gone: vitrine changes send --delete")
    return [found[i] for i in product_ids]


def events_of_file(path: Path, now: datetime) -> list[Event]:
    """Upserts of the products in a CSV or Parquet file (product_id, title, image, …), timed `now` without `updated_at`."""
    if not path.is_file():
        raise CatalogError(f"{path}: there is no such file")
    try:
        table = _csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: it cannot be read: {error}") from None
    dated = "updated_at" in table.column_names
    return [e for b in table.to_batches() for e in _events(to_products(b, str(path)), None if dated else now)]


def _csv(path: Path) -> pa.Table:
    """A CSV file with text columns, except those that are numeric in a snapshot."""
    with path.open() as stream:
        header = stream.readline().strip().replace('"', "").split(",")
    text = {n: pa.string() for n in header if n not in ("price", "popularity", "in_stock", "priority")}
    return pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types=text, strings_can_be_null=False))


def _events(products: pa.Table, now: datetime | None) -> Iterator[Event]:
    """Upserts of snapshot rows; `now` replaces their own time, which a catalogue may lack."""
    for row in products.to_pylist():
        at = row["updated_at"] if now is None else now
        yield upsert(row["product_id"], at, {n: v for n, v in row.items() if _said(n, v)})


def _said(name: str, value: Any) -> bool:
    return (
        value is not None
        and name not in ("product_id", "key", "updated_at")
        and (value != "" or name not in PRODUCT_SCHEMA.names)
    )
