"""Shared by SQLite and PostgreSQL: tables `products` and `photos`, read in one transaction over ADBC."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from serving.contract.addresses import hide_secrets
from tasks.errors import CatalogError, CatalogMissing


@dataclass(frozen=True)
class DatabaseColumn:
    """A column of `products`, and the SQL expression of its value for a row, {0} being the quoted column.

    The same expression is used by snapshots and by the triggers that capture changes. `left_out` says why there is none.
    """

    name: str
    expression: str
    left_out: str = ""

    def of(self, row: str = "") -> str:
        """The expression over a column of the table, or of the record `row` (NEW, OLD)."""
        return self.expression.format(f"{row}.{quoted(self.name)}" if row else quoted(self.name))


class DatabaseSource(ABC):
    """Tables `products` and (optional) `photos`, read inside one read transaction of an ADBC connection."""

    moment = ""

    def __init__(self, name: str, image_root: str, connection: Any) -> None:
        self.name, self.image_root, self.connection = name, image_root, connection
        self.left_out: dict[str, str] = {}
        self.rejected: list[str] = []

    @abstractmethod
    def products(self, after: str = "") -> Iterator[pa.RecordBatch]: ...

    def photos(self) -> Iterator[pa.RecordBatch]:
        return self._read("SELECT * FROM photos", "photos")

    def _selected(self, columns: list[DatabaseColumn]) -> list[DatabaseColumn]:
        """The columns to select; notes those left out."""
        self.left_out = {c.name: c.left_out for c in columns if c.left_out}
        return [c for c in columns if not c.left_out]

    def _read(self, query: str, table: str, **options: str) -> Iterator[pa.RecordBatch]:
        with self.connection.cursor() as cursor:
            if options:
                cursor.adbc_statement.set_options(**options)
            try:
                cursor.execute(query)
                yield from cursor.fetch_record_batch()
            except Exception as error:  # each ADBC driver has its own error classes
                missing = "no such table" in str(error) or f'relation "{table}" does not exist' in str(error)
                if missing and table == "photos":
                    return
                if missing:
                    raise CatalogMissing(
                        f"{self.name}: there is no table {table} in it; make one with: vitrine catalog load"
                    ) from None
                what = hide_secrets(str(error).strip().splitlines()[0])
                raise CatalogError(f"{self.name}: cannot read the table {table}: {what}") from None


def quoted(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def sql_literal(text: str) -> str:
    """A quoted SQL literal; neither driver streams the result of a parameterised query."""
    return "'" + text.replace("'", "''") + "'"
