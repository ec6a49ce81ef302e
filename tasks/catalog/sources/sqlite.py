"""Catalogue source: a SQLite file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.sources.database import DatabaseSource, sql_literal
from tasks.catalog.sources.source import BATCH_ROWS, file_stamp
from tasks.errors import CatalogMissing

NO_DATABASE = (
    "{uri}: there is no such database; name the catalogue with VITRINE_CATALOG, or make one with: vitrine catalog sample and "
    "vitrine catalog load"
)


@contextmanager
def open_sqlite(uri: str) -> Iterator["SqliteSource"]:
    """The catalogue at sqlite:///file, read only. Raises CatalogMissing when the file does not exist."""
    from adbc_driver_sqlite import dbapi

    path = addresses.sqlite_path(uri)
    if not path.is_file():
        raise CatalogMissing(NO_DATABASE.format(uri=uri))
    with dbapi.connect(addresses.sqlite_uri(path, "ro")) as connection:
        yield SqliteSource(uri, str(path.parent), connection, path)


class SqliteSource(DatabaseSource):
    """A SQLite file. The driver infers column types from the first batch, so a row that shows the types is prepended."""

    SHOWN = {"TEXT": "''", "CLOB": "''", "CHAR": "''", "REAL": "0.0", "FLOA": "0.0", "DOUB": "0.0", "INT": "0"}
    """What a declared type's name holds, and a value of it; the rest is left to the driver."""

    def __init__(self, name: str, image_root: str, connection: Any, file: Path) -> None:
        super().__init__(name, image_root, connection)
        before = file_stamp(file)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_master")  # from here on the transaction sees one moment
            cursor.fetchone()
        self.moment = before if before == file_stamp(file) else ""

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """Ordered by bytes (SQLite's BINARY collation)."""
        columns = self._columns("products")
        where = f" WHERE product_id > {sql_literal(after)}" if after else ""
        if "product_id" not in columns:  # the caller says which columns there are
            yield from self._batches("SELECT * FROM products", "products")
            return
        shown = ", ".join("NULL" if name == "product_id" else value for name, value in columns.items())
        wanted = ", ".join(_as_real(n) if v == "0.0" else f'"{n}"' for n, v in columns.items())
        first = True
        for batch in self._batches(f"SELECT {shown} UNION ALL SELECT {wanted} FROM products{where} ORDER BY 1", "products"):
            yield batch.rename_columns(list(columns)).slice(1 if first else 0)
            first = False

    def _columns(self, table: str) -> dict[str, str]:
        """The columns of a table, product_id first, and a value that shows what type each holds."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT name, upper(type) FROM pragma_table_info('{table}')")
            found = dict(cursor.fetchall())
        first = {n: t for n, t in found.items() if n == "product_id"}
        types = first | {n: "REAL" if n in ("price", "popularity") else t for n, t in found.items()}
        return {n: next((v for word, v in self.SHOWN.items() if word in t), "NULL") for n, t in types.items()}

    def _batches(self, query: str, table: str) -> Iterator[pa.RecordBatch]:
        return self._read(query, table, **{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})


def _as_real(name: str) -> str:
    """Whole numbers as real ones; text stays text, so that a price that is no number is refused instead of read as 0."""
    return f'CASE typeof("{name}") WHEN \'integer\' THEN CAST("{name}" AS REAL) ELSE "{name}" END'
