"""Catalogue source: a PostgreSQL database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.sources.database import DatabaseSource, sql_literal
from tasks.errors import CatalogError


@contextmanager
def open_postgresql(uri: str) -> Iterator["PostgresSource"]:
    """The catalogue at postgresql://…[?image_root=<folder>]. Raises CatalogError when the server does not respond."""
    from adbc_driver_postgresql import dbapi

    address, root = split_image_root(uri)
    try:
        connection = dbapi.connect(address)
    except dbapi.Error as error:
        raise CatalogError(f"PostgreSQL does not answer: {addresses.hide_secrets(str(error).strip().splitlines()[-1], uri)}") from None
    with connection:
        yield PostgresSource(address.rpartition("@")[2], root, connection)


def split_image_root(uri: str) -> tuple[str, str]:
    """Splits a PostgreSQL uri into the uri without `image_root`, and that parameter, percent-decoded (default ".")."""
    address, _, query = uri.partition("?")
    parts = [p for p in query.split("&") if p]
    root = next((unquote(p.partition("=")[2]) for p in parts if p.startswith("image_root=")), ".")
    others = "&".join(p for p in parts if not p.startswith("image_root="))
    return (f"{address}?{others}" if others else address), root


class PostgresSource(DatabaseSource):
    """A PostgreSQL database, streamed by COPY inside one repeatable-read transaction."""

    def __init__(self, name: str, image_root: str, connection: Any) -> None:
        super().__init__(name, image_root, connection)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with connection.cursor() as cursor:
            # The same xmin, xmax and running transactions: nothing was committed in between, in any database of the server.
            cursor.execute("SELECT pg_current_snapshot()::text")
            self.moment = str(cursor.fetchone()[0])

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """COLLATE "C" orders by bytes as SQLite does, so both give the same snapshot."""
        name = 'product_id::text COLLATE "C"'
        where = f" WHERE {name} > {sql_literal(after)}" if after else ""
        return self._read(f"SELECT * FROM products{where} ORDER BY {name}", "products")
