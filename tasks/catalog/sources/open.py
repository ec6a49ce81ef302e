"""Opens the catalogue source of a uri."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.contract import addresses
from tasks.catalog.sources.folder import FolderSource
from tasks.catalog.sources.postgresql import open_postgresql
from tasks.catalog.sources.query import SETTING
from tasks.catalog.sources.source import Source, SourceOptions
from tasks.catalog.sources.sqlite import open_sqlite
from tasks.catalog.sources.tables import TableAddress, TableSource
from tasks.errors import CatalogError, SettingsError

TABLES = ("parquet", "delta", "iceberg")
"""What stands before the colon of a table's address."""


@contextmanager
def open_source(uri: str, options: SourceOptions | None = None) -> Iterator[Source]:
    """The catalogue at `uri`: sqlite:///file, postgresql://…, parquet:, delta: or iceberg: and a table, or a folder with products.csv or
    products.parquet.

    Pictures' relative paths are relative to the folder, or to the SQLite file's folder; for PostgreSQL to the query
    parameter `image_root` of the uri (default: the working directory).
    """
    options = options or SourceOptions()
    with _open(uri, options) as source:
        if source.moment and options.stamp:
            source.moment += f" {options.stamp}"
        yield source


@contextmanager
def _open(uri: str, options: SourceOptions) -> Iterator[Source]:
    if uri.startswith("sqlite:///"):
        with open_sqlite(uri, options) as database:
            yield database
        return
    if uri.startswith(("postgresql://", "postgres://")):
        with open_postgresql(uri, options) as server:
            yield server
        return
    if options.query:
        raise SettingsError(f"{SETTING} is for SQLite and PostgreSQL; the catalogue {addresses.without_secrets(uri)} is neither")
    if uri.partition(":")[0] in TABLES:
        yield open_table(uri, options)
        return
    if "://" in uri and not uri.startswith("file://"):
        raise CatalogError(
            f"{addresses.without_secrets(uri)} is no catalogue: expected sqlite:///file, postgresql://…, parquet:, delta: or iceberg: and "
            "a table's address, or a folder"
        )
    yield FolderSource(addresses.local_path(uri), options)


def open_table(address: str, options: SourceOptions) -> TableSource:
    """The table of a parquet:, delta: or iceberg: address, and its table of pictures. Raises CatalogMissing where there is none."""
    found = TableAddress.parse(address)
    source = _table(found, options)
    if found.images:
        source.pictures = open_beside(found, found.images)
        both = source.moment and source.pictures.moment
        source.moment = f"{source.moment}, pictures {source.pictures.moment}" if both else ""
    return source


def open_beside(address: TableAddress, other: str) -> TableSource:
    """Another table than that of the products, of the same kind where `other` names none."""
    return open_table(other if other.partition(":")[0] in TABLES else f"{address.kind}:{other}", SourceOptions())


def _table(found: TableAddress, options: SourceOptions) -> TableSource:
    if found.kind == "parquet":
        from tasks.catalog.sources.parquet import ParquetSource

        return ParquetSource(found, options)
    if found.kind == "delta":
        from tasks.catalog.sources.delta import DeltaSource

        return DeltaSource(found, options)
    from tasks.catalog.sources.iceberg import IcebergSource

    return IcebergSource(found, options)
