"""Catalogue source: a PostgreSQL database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from serving.contract import addresses
from tasks.catalog.schema import KINDS
from tasks.catalog.sources.database import DatabaseColumn, DatabaseSource, quoted, sql_literal
from tasks.errors import CatalogError

COLUMNS = """
SELECT a.attname::text, coalesce(b.typname, t.typname)::text, coalesce(b.typtype, t.typtype)::text, coalesce(e.typname, '')::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
LEFT JOIN pg_type e ON e.oid = coalesce(b.typelem, t.typelem) AND coalesce(b.typcategory, t.typcategory) = 'A'
WHERE a.attrelid = to_regclass('products') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
"""Name, base type, kind of type and element type of each column of the table (or view) products."""
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


def table_columns(rows: list[tuple[str, str, str, str]]) -> list[DatabaseColumn]:
    """The columns of products from the rows of COLUMNS."""
    return [DatabaseColumn(name, *_expression(name, kind, variety, element)) for name, kind, variety, element in rows]


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


@contextmanager
def open_postgresql(uri: str) -> Iterator["PostgresSource"]:
    """The catalogue at postgresql://…[?image_root=<folder>]. Raises CatalogError when the server does not respond."""
    from adbc_driver_postgresql import dbapi

    address, root = split_image_root(uri)
    try:
        connection = dbapi.connect(address)
    except dbapi.Error as error:
        raise CatalogError(
            f"PostgreSQL does not answer: {addresses.hide_secrets(str(error).strip().splitlines()[-1], uri)}"
        ) from None
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
        """Ordered by COLLATE "C", by bytes as SQLite does, so both give the same snapshot."""
        with self.connection.cursor() as cursor:
            cursor.execute(COLUMNS)
            found = self._selected(table_columns(cursor.fetchall()))
        if not any(c.name == "product_id" for c in found):  # the caller says which columns there are
            yield from self._read("SELECT * FROM products", "products")
            return
        name = 'product_id::text COLLATE "C"'
        where = f" WHERE {name} > {sql_literal(after)}" if after else ""
        wanted = ", ".join(f"{c.of()} AS {quoted(c.name)}" for c in found)
        yield from self._read(f"SELECT {wanted} FROM products{where} ORDER BY {name}", "products")
