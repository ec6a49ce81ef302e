"""Catalogue source: a SQLite file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.schema import KINDS
from tasks.catalog.sources.database import DatabaseColumn, DatabaseSource, quoted, sql_literal
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

    def __init__(self, name: str, image_root: str, connection: Any, file: Path) -> None:
        super().__init__(name, image_root, connection)
        before = file_stamp(file)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_master")  # from here on the transaction sees one moment
            cursor.fetchone()
        self.moment = before if before == file_stamp(file) else ""

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """Ordered by bytes (SQLite's BINARY collation)."""
        columns = self._selected(self._columns())
        if not any(c.name == "product_id" for c in columns):  # the caller says which columns there are
            yield from self._batches("SELECT * FROM products", "products")
            return
        columns = sorted(columns, key=lambda c: c.name != "product_id")
        where = f" WHERE CAST(product_id AS TEXT) > {sql_literal(after)}" if after else ""
        shown = ", ".join(SHOWN[c.expression] for c in columns)
        wanted = ", ".join(c.of() for c in columns)
        names = [c.name for c in columns]
        query = f"SELECT {shown}, 0 UNION ALL SELECT {wanted}, 1 FROM products{where} ORDER BY {len(names) + 1}, 1"
        first = True
        for batch in self._batches(query, "products"):
            rows = batch.slice(1 if first else 0)
            yield pa.RecordBatch.from_arrays(rows.columns[:-1], names=names)
            first = False

    def _columns(self) -> list[DatabaseColumn]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT name, upper(type) FROM pragma_table_info('products')")
            declared = cursor.fetchall()
            asked = [(name, kind) for name, kind in declared if may_be_numeric(kind)]
            stored: dict[str, str] = {}
            if asked:
                classes = ", ".join(
                    f"max(typeof({quoted(n)}) IN ('text', 'blob')), max(typeof({quoted(n)}) = 'real'), count({quoted(n)})"
                    for n, _ in asked
                )
                cursor.execute(f"SELECT {classes} FROM products")
                found = cursor.fetchone()
                for place, (name, kind) in enumerate(asked):
                    other, real, values = found[3 * place : 3 * place + 3]
                    stored[name] = "text" if other or not (values or kind) else "real" if real else "integer"
        return table_columns(declared, stored)

    def _batches(self, query: str, table: str) -> Iterator[pa.RecordBatch]:
        return self._read(query, table, **{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})


TEXT, REAL, INTEGER = "CAST({0} AS TEXT)", "CAST({0} AS REAL)", "{0}"
SHOWN = {TEXT: "''", REAL: "0.0", INTEGER: "0"}
"""A value of the type that each expression gives."""


def may_be_numeric(declared: str) -> bool:
    """Whether SQLite keeps numbers in a column of this declared type as numbers (sqlite.org/datatype3.html, 3.1), or has none."""
    return not any(word in declared for word in ("CHAR", "CLOB", "TEXT", "BLOB", "DATE", "TIME"))


def table_columns(declared: Sequence[tuple[Any, ...]], stored: dict[str, str] | None) -> list[DatabaseColumn]:
    """The columns of products by declared type (upper case) and by what numeric ones really hold: text, real or integer.

    With None for what they hold, their values are taken as they are (for JSON, which carries each with its own type).
    """
    columns = []
    for name, kind in declared:
        if "BLOB" in kind and name not in KINDS:
            columns.append(DatabaseColumn(name, "", "no filter can use its type, BLOB"))
            continue
        if stored is None:
            columns.append(DatabaseColumn(name, INTEGER))
            continue
        holds = stored.get(name, "text") if name != "product_id" else "text"
        if holds == "integer" and (name in ("price", "popularity") or ("INT" not in kind and "BOOL" not in kind)):
            holds = "real"
        columns.append(DatabaseColumn(name, {"text": TEXT, "real": REAL, "integer": INTEGER}[holds]))
    return columns
