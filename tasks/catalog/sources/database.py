"""Shared by SQLite and PostgreSQL: tables `products` and `photos`, read in one transaction over ADBC."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks.errors import CatalogError, CatalogMissing


class DatabaseSource(ABC):
    """Tables `products` and (optional) `photos`, read inside one read transaction of an ADBC connection."""

    moment = ""

    def __init__(self, name: str, image_root: str, connection: Any) -> None:
        self.name, self.image_root, self.connection = name, image_root, connection

    @abstractmethod
    def products(self, after: str = "") -> Iterator[pa.RecordBatch]: ...

    def photos(self) -> Iterator[pa.RecordBatch]:
        return self._read("SELECT * FROM photos", "photos")

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
                raise CatalogError(f"{self.name}: cannot read the table {table}: {str(error).strip().splitlines()[0]}") from None


def sql_literal(text: str) -> str:
    """A quoted SQL literal; neither driver streams the result of a parameterised query."""
    return "'" + text.replace("'", "''") + "'"
