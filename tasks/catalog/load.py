"""Loads a catalogue folder into a database in one transaction."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serving.contract import addresses
from tasks.catalog.product_pictures import IMAGES, PICTURE_ROWS, picture_rows
from tasks.catalog.schema import read_products, to_photos
from tasks.catalog.sources.folder import FolderSource
from tasks.catalog.sources.postgresql import connect as connect_postgres
from tasks.catalog.sources.source import SourceOptions
from tasks.errors import CatalogError, CatalogMissing


@dataclass(frozen=True)
class Loaded:
    """Rows loaded, and a sentence for each row of products that cannot be used and was left out."""

    products: int
    photos: int
    unusable: list[str]


def load_folder(folder: Path, database_uri: str, options: SourceOptions | None = None) -> Loaded:
    """Replaces the tables `products`, `product_images` and `photos` with the folder's in one transaction; a folder without further
    pictures leaves no product_images, one without photos the photos that are there. Rows that cannot be used are left out.

    Pictures stay where they are. For SQLite their relative paths are made relative to the database's folder; for PostgreSQL they
    stay relative to the catalogue's folder, which `image_root` must name. Addresses and absolute paths stay as they are. Raises
    CatalogError for an unusable folder before anything is written.
    """
    source = FolderSource(folder, options)
    found = [read_products(b, source.name, source.options.limits) for b in source.products()]
    if not found:
        raise CatalogMissing(f"{folder}: the catalogue has no products")
    unusable = [row.sentence for rows in found for row in rows.unusable] + source.rejected
    pictures = pa.concat_tables([_further(rows.table) for rows in found])
    products = pa.concat_tables([_flat(rows.table) for rows in found], promote_options="default")
    if unusable and not len(products):
        raise CatalogError(f"{folder}: none of its {len(unusable)} rows can be used; the first: {unusable[0]}")
    photos = [to_photos(b, source.name) for b in source.photos()]
    labelled = pa.concat_tables(photos) if photos else None
    if database_uri.startswith("sqlite:///"):
        path = addresses.sqlite_path(database_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = _prefix(folder, path.parent)
        products, pictures = _below(products, "image_uri", prefix), _below(pictures, "image", prefix)
        labelled = _below(labelled, "photo_uri", prefix) if labelled is not None else None
        from adbc_driver_sqlite import dbapi

        connect = dbapi.connect(addresses.sqlite_uri(path))
    elif database_uri.startswith(("postgresql://", "postgres://")):
        connect = connect_postgres(database_uri)
    else:
        raise CatalogError(f"{addresses.without_secrets(database_uri)}: not a database; give sqlite:///file or postgresql://…")
    with connect as connection:
        _replace(connection, "products", products)
        if len(pictures):
            _replace(connection, PICTURE_ROWS, pictures)
        else:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {PICTURE_ROWS}")
        if labelled is not None:
            _replace(connection, "photos", labelled)
        connection.commit()
    return Loaded(len(products), len(labelled) if labelled is not None else 0, unusable)


def _replace(connection: Any, table: str, rows: pa.Table) -> None:
    with connection.cursor() as cursor:
        cursor.adbc_ingest(table, rows.to_reader(), mode="replace")


def _flat(table: pa.Table) -> pa.Table:
    """Columns as stored in a database: category path and time as text, no key."""
    category = pc.binary_join(table["category"], " > ")
    updated = pc.strftime(table["updated_at"], "%Y-%m-%d %H:%M:%S", locale="C")
    table = table.set_column(table.column_names.index("category"), "category", category)
    table = table.set_column(table.column_names.index("updated_at"), "updated_at", updated)
    flags = [n for n in ("in_stock", "priority") if n in table.column_names]
    for name in flags:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    return table.drop_columns([n for n in ("key", IMAGES) if n in table.column_names])


def _further(table: pa.Table) -> pa.Table:
    """Further pictures as rows of product_images."""
    rows = picture_rows(table.set_column(table.column_names.index("key"), "key", table["product_id"]))
    rows = rows.filter(pc.greater(rows["position"], 0))
    return pa.table({"product_id": rows["key"], "image": rows["image_uri"], "position": rows["position"].cast(pa.int64())})


def _prefix(folder: Path, base: Path) -> str:
    try:
        return str(folder.resolve().relative_to(base.resolve()))
    except ValueError:
        raise CatalogError(f"{folder} must lie below {base}, the database's folder, so that its pictures can be found") from None


def _below(table: pa.Table, column: str, prefix: str) -> pa.Table:
    texts: Iterator[str] = (
        t if not t or "://" in t or t.startswith("/") or prefix == "." else f"{prefix}/{t}" for t in table[column].to_pylist()
    )
    return table.set_column(table.column_names.index(column), column, pa.array(list(texts), pa.string()))
