"""Catalogue source: a PostgreSQL database."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.schema import KINDS
from tasks.catalog.sources.database import (
    DatabaseColumn,
    DatabaseSource,
    check_names,
    quoted,
    raise_unreadable,
    sql_literal,
)
from tasks.catalog.sources.source import SourceOptions
from tasks.errors import CatalogAway

COLUMNS = """
SELECT a.attname::text, coalesce(b.typname, t.typname)::text, coalesce(b.typtype, t.typtype)::text, coalesce(e.typname, '')::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
LEFT JOIN pg_type e ON e.oid = coalesce(b.typelem, t.typelem) AND coalesce(b.typcategory, t.typcategory) = 'A'
WHERE a.attrelid = to_regclass('products') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
"""Name, base type, kind of type and element type of each column of the table (or view) products."""
PICTURE_COLUMNS = f"""
SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass('{PICTURE_ROWS}') AND attnum > 0 AND NOT attisdropped
AND has_table_privilege(attrelid, 'SELECT') ORDER BY attnum"""
BEYOND = "20000-01-01"
"""Stands for infinite times, which Arrow does not know: no snapshot takes a year of five digits, so the row is set aside."""
EXPRESSIONS = {
    "bool": "{0}", "int2": "{0}", "int4": "{0}", "int8": "{0}", "float4": "{0}", "float8": "{0}",
    "numeric": "CASE WHEN {0} = 'NaN' THEN 'NaN' WHEN abs({0}) < 1e308 THEN {0}::float8 WHEN {0} IS NOT NULL THEN 'Infinity' END::float8",
    "money": "{0}::numeric::float8",
    "date": f"CASE WHEN isfinite({{0}}) THEN {{0}}::timestamp WHEN {{0}} IS NOT NULL THEN timestamp '{BEYOND}' END",
    "timestamp": f"CASE WHEN isfinite({{0}}) THEN {{0}} WHEN {{0}} IS NOT NULL THEN timestamp '{BEYOND}' END",
    "timestamptz": f"CASE WHEN isfinite({{0}}) THEN {{0}} WHEN {{0}} IS NOT NULL THEN timestamptz '{BEYOND} 00:00Z' END",
}  # fmt: skip
"""PostgreSQL types whose value is not its text."""
TEXTS = (
    "text",
    "varchar",
    "bpchar",
    "char",
    "name",
    "citext",
    "uuid",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "time",
    "timetz",
    "interval",
)
NAMES_OF_JSON = (
    "CASE jsonb_typeof({0}::jsonb) WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text({0}::jsonb)) "
    "WHEN 'null' THEN NULL ELSE ARRAY[{0}::jsonb #>> '{{}}'] END"
)


TYPES_OF_QUERY = """
SELECT c.name, coalesce(b.typname, t.typname)::text, coalesce(b.typtype, t.typtype)::text, coalesce(e.typname, '')::text
FROM (VALUES {columns}) AS c (place, name, kind) JOIN pg_type t ON t.oid = c.kind
LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
LEFT JOIN pg_type e ON e.oid = coalesce(b.typelem, t.typelem) AND coalesce(b.typcategory, t.typcategory) = 'A' ORDER BY c.place"""
"""The same of a query's columns."""


def table_columns(rows: Sequence[tuple[str, str, str, str]], names: Mapping[str, str] | None = None) -> list[DatabaseColumn]:
    """The columns of products from the rows of COLUMNS; `names` gives our names of those that only get another name."""
    names = names or {}
    return [DatabaseColumn(name, *_expression(names.get(name, name), kind, of, inner)) for name, kind, of, inner in rows]


def _expression(name: str, kind: str, variety: str, element: str) -> tuple[str, str]:
    """The SQL expression of a column, and why it is left out."""
    if kind in EXPRESSIONS:
        return EXPRESSIONS[kind], ""
    if kind in TEXTS or variety == "e":
        return "{0}::text", ""
    if element in (*TEXTS, "int2", "int4", "int8"):
        return "{0}::text[]", ""
    if kind in ("json", "jsonb") and name in KINDS:
        return (NAMES_OF_JSON if name == "category" else "{0}::text"), ""
    return "", f"no filter can use its type, {element + '[]' if element else kind}"


PLAIN_LITERALS = "SET standard_conforming_strings = on"
"""A backslash in `sql_literal` is one, whatever the server, database or role says (on by default since PostgreSQL 9.1)."""


LIMITS = {"connect_timeout": 10, "tcp_user_timeout": 60_000}
"""libpq's parameters where the address has none of its own: seconds until a server must have answered, milliseconds until what it was
sent must have arrived. Without them a server that is silent holds a step until its execution timeout."""
HINT = "Is the server running"
"""How the line of libpq's begins that asks instead of saying what was refused."""


@contextmanager
def open_postgresql(uri: str, options: SourceOptions | None = None) -> Iterator["PostgresSource"]:
    """The catalogue at postgresql://…[?image_root=<folder>]. Raises CatalogAway when the server does not respond."""
    address, root = split_image_root(uri)
    with connect(uri) as connection:
        yield PostgresSource(address.rpartition("@")[2], root, connection, options)


def lost_connection(error: BaseException) -> bool:
    """Whether an error of the driver is about the connection rather than the statement: the server sent no SQLSTATE, or one of
    connections (class 08) or of its own end (57P)."""
    from adbc_driver_manager import AdbcStatusCode
    from adbc_driver_postgresql import dbapi

    if not isinstance(error, dbapi.Error):
        return False
    return error.sqlstate.startswith(("08", "57P")) if error.sqlstate else error.status_code == AdbcStatusCode.IO


def connect(uri: str) -> Any:
    """A connection (ADBC) to the database of an address, `image_root` left out, within LIMITS. Raises CatalogAway."""
    from adbc_driver_postgresql import dbapi

    address, _ = split_image_root(uri)
    missing = [f"{name}={value}" for name, value in LIMITS.items() if f"{name}=" not in address]
    try:
        return dbapi.connect(address + ("&" if "?" in address else "?") + "&".join(missing) if missing else address)
    except dbapi.Error as error:
        lines = [line.strip() for line in addresses.hide_secrets(str(error), uri).strip().splitlines()]
        why = [line for line in lines if not line.startswith(HINT)] or lines
        raise CatalogAway(f"PostgreSQL does not answer: {why[-1]}") from None


def split_image_root(uri: str) -> tuple[str, str]:
    """Splits a PostgreSQL uri into the uri without `image_root`, and that parameter, percent-decoded (default ".")."""
    address, _, query = uri.partition("?")
    parts = [p for p in query.split("&") if p]
    root = next((unquote(p.partition("=")[2]) for p in parts if p.startswith("image_root=")), ".")
    others = "&".join(p for p in parts if not p.startswith("image_root="))
    return (f"{address}?{others}" if others else address), root


class PostgresSource(DatabaseSource):
    """A PostgreSQL database, streamed by COPY inside one repeatable-read transaction."""

    def __init__(self, name: str, image_root: str, connection: Any, options: SourceOptions | None) -> None:
        super().__init__(name, image_root, connection, options)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL TIME ZONE 'UTC'")  # of a text without a zone that is compared as a time
        with connection.cursor() as cursor:
            cursor.execute(PLAIN_LITERALS)
        with connection.cursor() as cursor:
            # The same xmin, xmax and running transactions: nothing was committed in between, in any database of the server.
            cursor.execute("SELECT pg_current_snapshot()::text")
            self.moment = str(cursor.fetchone()[0])
        if self.options.query:
            self.table = f"(\n{self.options.query}\n) AS products"

    def columns(self) -> list[DatabaseColumn]:
        with self.connection.cursor() as cursor:
            rows = self._query_columns(cursor) if self.options.query else self._table_columns(cursor)
        return table_columns(rows, self.options.columns.names(row[0] for row in rows))

    def _table_columns(self, cursor: Any) -> Sequence[Any]:
        cursor.execute(COLUMNS)
        return list(cursor.fetchall())

    def _query_columns(self, cursor: Any) -> Sequence[Any]:
        try:
            cursor.execute(f"SELECT * FROM {self.table} LIMIT 0")
            names = cursor.fetch_arrow_table().column_names
            check_names(names, self.name)
            kinds = ", ".join(f"pg_typeof(q.{quoted(n)})::oid::bigint" for n in names)
            # One row of NULLs, each of its column's type.
            cursor.execute(f"SELECT {kinds} FROM (SELECT 1) AS one LEFT JOIN (SELECT * FROM {self.table} LIMIT 0) AS q ON TRUE")
            found = cursor.fetchone()
            columns = ", ".join(f"({n}, {sql_literal(name)}, {found[n]}::oid)" for n, name in enumerate(names))
            cursor.execute(TYPES_OF_QUERY.format(columns=columns))
            return list(cursor.fetchall())
        except Exception as error:
            if self.lost(error):
                raise CatalogAway(f"{self.name} does not answer any more: {addresses.error_line(error)}") from None
            raise_unreadable(error, self.name, "products", self.options.query)
            raise

    def lost(self, error: Exception) -> bool:
        return lost_connection(error)

    def select(self, columns: list[DatabaseColumn], where: str, order: str) -> Iterator[pa.RecordBatch]:
        """COLLATE "C" orders by bytes as SQLite does, so both give the same snapshot."""
        wanted = ", ".join(f"{c.of()} AS {quoted(c.name)}" for c in columns)
        query = f"SELECT {wanted} FROM {self.table}" + (f" WHERE {where}" if where else "")
        yield from self._read(query + (f" ORDER BY {_bytes(order)}" if order else ""), "products")

    def picture_columns(self) -> list[str]:
        """None where this role may not read them."""
        with self.connection.cursor() as cursor:
            cursor.execute(PICTURE_COLUMNS)
            return [name for (name,) in cursor.fetchall()]

    def picture_select(self, columns: dict[str, str], where: str) -> str:
        wanted = ", ".join(f"products.{quoted(own)}::text AS {name}" for name, own in columns.items())
        return f"SELECT {wanted} FROM {PICTURE_ROWS} AS products" + (f" WHERE {where}" if where else "")

    def ids_among(self, column: str, where: str) -> str:
        return f"products.product_id::text IN (SELECT products.{quoted(column)}::text FROM {self.table} WHERE {where})"

    def later_id(self, column: str, after: str) -> str:
        return f"{_bytes(column)} > {sql_literal(after)}"

    def not_before(self, column: DatabaseColumn, since: str) -> str:
        """A column of times is compared as it is, so that an index of it can be used; a text is read as a time of UTC."""
        own, at = f"products.{quoted(column.name)}", sql_literal(since)
        if column.expression == EXPRESSIONS["timestamptz"]:
            return f"{own} >= timestamptz {sql_literal(since + 'Z')}"
        if column.expression in (EXPRESSIONS["timestamp"], EXPRESSIONS["date"]):
            return f"{own} >= timestamp {at}"
        return f"({own}::timestamptz AT TIME ZONE 'UTC') >= timestamp {at}"


def _bytes(column: str) -> str:
    """A column's text, compared by bytes."""
    return f'products.{quoted(column)}::text COLLATE "C"'
