"""Catalogue source: a SQLite file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.schema import KINDS
from tasks.catalog.sources.database import DatabaseColumn, DatabaseSource, quoted, raise_unreadable, sql_literal
from tasks.catalog.sources.source import BATCH_ROWS, SourceOptions, file_stamp
from tasks.errors import CatalogMissing

NO_DATABASE = (
    "{uri}: there is no such database; name the catalogue with VITRINE_CATALOG, or make one with: vitrine catalog sample and "
    "vitrine catalog load"
)


VIEW = "vitrine_products"
"""Name of the temporary view of VITRINE_CATALOG_QUERY."""


@contextmanager
def open_sqlite(uri: str, options: SourceOptions | None = None) -> Iterator["SqliteSource"]:
    """The catalogue at sqlite:///file, read only. Raises CatalogMissing when the file does not exist."""
    from adbc_driver_sqlite import dbapi

    path = addresses.sqlite_path(uri)
    if not path.is_file():
        raise CatalogMissing(NO_DATABASE.format(uri=uri))
    with dbapi.connect(addresses.sqlite_uri(path, "ro")) as connection:
        yield SqliteSource(uri, str(path.parent), connection, path, options)


class SqliteSource(DatabaseSource):
    """A SQLite file. The driver infers column types from the first batch, so a row that shows the types is prepended."""

    def __init__(self, name: str, image_root: str, connection: Any, file: Path, options: SourceOptions | None) -> None:
        super().__init__(name, image_root, connection, options)
        before = file_stamp(file)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_master")  # from here on the transaction sees one moment
            cursor.fetchone()
        self.moment = before if before == file_stamp(file) else ""
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA encoding")
            self.by_bytes = cursor.fetchone()[0] == "UTF-8"
        if self.options.query:
            self.table = VIEW
            self._make_view()

    def _make_view(self) -> None:
        """The query as a temporary view, which knows the declared types of what it selects; the file itself is open for reading only."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(f"CREATE TEMP VIEW {VIEW} AS {self.options.query}")
            with self.connection.cursor() as cursor:
                cursor.execute(f"SELECT name FROM pragma_table_info('{VIEW}')")
                cursor.fetchall()
        except Exception as error:
            raise_unreadable(error, self.name, "products", self.options.query)

    def columns(self) -> list[DatabaseColumn]:
        try:
            return self._columns()
        except Exception as error:  # a query may fail at any of its rows
            raise_unreadable(error, self.name, "products", self.options.query)
            raise

    def _columns(self) -> list[DatabaseColumn]:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT name, upper(type) FROM pragma_table_info('{self.table}')")
            declared = cursor.fetchall()
            asked = [(name, kind) for name, kind in declared if may_be_numeric(kind)]
            stored: dict[str, str] = {}
            if asked:
                classes = ", ".join(
                    f"max(typeof({quoted(n)}) IN ('text', 'blob')), max(typeof({quoted(n)}) = 'real'), count({quoted(n)})"
                    for n, _ in asked
                )
                cursor.execute(f"SELECT {classes} FROM {self.table}")
                found = cursor.fetchone()
                for place, (name, kind) in enumerate(asked):
                    other, real, values = found[3 * place : 3 * place + 3]
                    stored[name] = "text" if other or not (values or kind) else "real" if real else "integer"
        return table_columns(declared, stored, self.options.columns.names(name for name, _ in declared))

    def select(self, columns: list[DatabaseColumn], where: str, order: str) -> Iterator[pa.RecordBatch]:
        columns = sorted(columns, key=lambda c: c.name != order)
        shown = ", ".join(SHOWN[c.expression] for c in columns)
        wanted = ", ".join(c.of() for c in columns)
        names = [c.name for c in columns]
        rows = f"SELECT {wanted}, 1 FROM {self.table}" + (f" WHERE {where}" if where else "")
        query = f"SELECT {shown}, 0 UNION ALL {rows} ORDER BY {len(names) + 1}" + (", 1" if order else "")
        first = True
        for batch in self._read(query, "products", **{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)}):
            found = batch.slice(1 if first else 0)
            yield pa.RecordBatch.from_arrays(found.columns[:-1], names=names)
            first = False

    def picture_columns(self) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT name FROM pragma_table_info('{PICTURE_ROWS}')")
            return [name for (name,) in cursor.fetchall()]

    def picture_select(self, columns: dict[str, str], where: str) -> str:
        shown = ", ".join(f"{'0.0' if name == 'position' else sql_literal('')} AS {name}" for name in columns)
        wanted = ", ".join(f"CAST({quoted(own)} AS {'REAL' if name == 'position' else 'TEXT'})" for name, own in columns.items())
        return f"SELECT {shown} UNION ALL SELECT {wanted} FROM {PICTURE_ROWS}" + (f" WHERE {where}" if where else "")

    def ids_among(self, column: str, where: str) -> str:
        return f"CAST(product_id AS TEXT) IN (SELECT CAST({quoted(column)} AS TEXT) FROM {self.table} WHERE {where})"

    def later_id(self, column: str, after: str) -> str:
        return f"CAST({quoted(column)} AS TEXT) > {sql_literal(after)}"

    def not_before(self, column: DatabaseColumn, since: str) -> str:
        """What SQLite does not know as a time, such as an offset without a colon, is taken too: the caller looks at it again."""
        own = quoted(column.name)
        return f"{own} IS NOT NULL AND coalesce(julianday({own}) >= julianday({sql_literal(since)}), 1)"


TEXT, REAL, INTEGER = "CAST({0} AS TEXT)", "CAST({0} AS REAL)", "{0}"
SHOWN = {TEXT: "''", REAL: "0.0", INTEGER: "0"}
"""A value of the type that each expression gives."""


def may_be_numeric(declared: str) -> bool:
    """Whether SQLite keeps numbers in a column of this declared type as numbers (sqlite.org/datatype3.html, 3.1), or has none."""
    return not any(word in declared for word in ("CHAR", "CLOB", "TEXT", "BLOB", "DATE", "TIME"))


def table_columns(
    declared: Sequence[tuple[Any, ...]], stored: dict[str, str] | None, names: Mapping[str, str] | None = None
) -> list[DatabaseColumn]:
    """The columns of products by declared type (upper case) and by what numeric ones really hold: text, real or integer.

    `names` gives our names of those that only get another name. With None for what they hold, their
    values are taken as they are (for JSON, which carries each with its own type).
    """
    columns = []
    for name, kind in declared:
        ours = (names or {}).get(name, name)
        if "BLOB" in kind and ours not in KINDS:
            columns.append(DatabaseColumn(name, "", "no filter can use its type, BLOB"))
            continue
        if stored is None:
            columns.append(DatabaseColumn(name, INTEGER))
            continue
        holds = stored.get(name, "text") if ours != "product_id" else "text"
        if holds == "integer" and (ours in ("price", "popularity") or ("INT" not in kind and "BOOL" not in kind)):
            holds = "real"
        columns.append(DatabaseColumn(name, {"text": TEXT, "real": REAL, "integer": INTEGER}[holds]))
    return columns
