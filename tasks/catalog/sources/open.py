"""Opens the catalogue source of a uri."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.contract import addresses
from tasks.catalog.sources.folder import FolderSource
from tasks.catalog.sources.postgresql import open_postgresql
from tasks.catalog.sources.source import Source, SourceOptions
from tasks.catalog.sources.sqlite import open_sqlite


@contextmanager
def open_source(uri: str, options: SourceOptions | None = None) -> Iterator[Source]:
    """The catalogue at `uri`: sqlite:///file, postgresql://…, or a folder with products.csv or products.parquet.

    Pictures' relative paths are relative to the folder, or to the SQLite file's folder; for PostgreSQL to the query
    parameter `image_root` of the uri (default: the working directory).
    """
    if uri.startswith("sqlite:///"):
        with open_sqlite(uri) as source:
            yield source
    elif uri.startswith(("postgresql://", "postgres://")):
        with open_postgresql(uri) as source:
            yield source
    else:
        yield FolderSource(addresses.local_path(uri), options)
