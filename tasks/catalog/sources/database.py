"""Shared by SQLite and PostgreSQL: tables `products`, `product_images` and `photos`, read in one transaction over ADBC."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from serving.contract.addresses import error_line
from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.sources.pictures import with_pictures
from tasks.catalog.sources.query import SETTING
from tasks.catalog.sources.sorting import beyond, sorted_batches
from tasks.catalog.sources.source import BATCH_ROWS, SourceOptions
from tasks.errors import CatalogAway, CatalogError, CatalogMissing


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
    """Tables `products` (or the query of the options) and, optionally, `product_images` and `photos`, read inside one read transaction.

    `table` is what is read in the place of `products`; `by_bytes`: whether it compares texts by the bytes of their UTF-8.
    """

    moment = ""
    table = "products"
    by_bytes = True

    def __init__(self, name: str, image_root: str, connection: Any, options: SourceOptions | None) -> None:
        self.name, self.image_root, self.connection = name, image_root, connection
        self.options = options or SourceOptions()
        self.left_out: dict[str, str] = {}
        self.rejected: list[str] = []
        self.unused_table: dict[str, str] = {}

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """Ordered by bytes of product_id, by the database where it can and product_id is a column of its own, else by us."""
        rows = self.picture_rows(self.later_id("product_id", after) if after and self.by_bytes else "")
        yield from with_pictures(self._products(after, ""), rows, f"{self.name}, {PICTURE_ROWS}")

    def picture_rows(self, where: str = "") -> Iterator[pa.RecordBatch] | None:
        """Rows of the table product_images for which the SQL condition holds ("": all), in any order; None where it cannot be used."""
        names = self.picture_columns()
        image = next((n for n in ("image", "image_uri") if n in names), "")
        self.unused_table = {}
        if not names:
            return None
        if not image or "product_id" not in names:
            self.unused_table = {PICTURE_ROWS: f"the table has no column {'product_id' if image else 'image'}"}
            self.left_out |= self.unused_table
            return None
        wanted = {"product_id": "product_id", "image": image} | {n: n for n in ("position", "kind") if n in names}
        return self._read(self.picture_select(wanted, where), PICTURE_ROWS)

    @abstractmethod
    def picture_columns(self) -> list[str]:
        """The columns of the table product_images; none where it is not there."""

    @abstractmethod
    def picture_select(self, columns: dict[str, str], where: str) -> str:
        """The SELECT of these columns (our name and the table's own) of product_images, as texts."""

    def lost(self, error: Exception) -> bool:
        """Whether the error is that of a server that went away, which files do not."""
        return False

    @abstractmethod
    def columns(self) -> list[DatabaseColumn]:
        """The columns of products, those that are left out too."""

    @abstractmethod
    def select(self, columns: list[DatabaseColumn], where: str, order: str) -> Iterator[pa.RecordBatch]:
        """The rows for which the SQL condition `where` holds ("": all), by bytes of the column `order` ("": in any order)."""

    @abstractmethod
    def later_id(self, column: str, after: str) -> str:
        """The SQL condition that the text of a column is greater than `after`, by bytes."""

    def changed_since(self, since: datetime) -> Iterator[pa.RecordBatch]:
        """The rows whose updated_at is `since` or later, in order of product_id. Raises CatalogError where no column is that."""
        found = self.columns()
        name = self.options.columns.column_of("updated_at", [c.name for c in found])
        column = next((c for c in found if c.name == name and not c.left_out), None)
        if column is None:
            raise CatalogError(
                f"{self.name}: there is no column updated_at to find changes by; compare it: VITRINE_CHANGES=compare:"
            )
        changed = self.not_before(column, since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"))
        own_id = self.options.columns.column_of("product_id", [c.name for c in found])
        rows = self.picture_rows(self.ids_among(own_id, changed) if own_id else "")
        yield from with_pictures(self._products("", changed), rows, f"{self.name}, {PICTURE_ROWS}")

    @abstractmethod
    def ids_among(self, column: str, where: str) -> str:
        """The SQL condition that a row of product_images belongs to a product for which `where` holds; `column` is the product's id."""

    @abstractmethod
    def not_before(self, column: DatabaseColumn, since: str) -> str:
        """The SQL condition that a column is a time (UTC) no earlier than `since`."""

    def raw(self) -> Iterator[pa.RecordBatch]:
        """The products with the table's own columns, in any order; notes those that are not read."""
        found = self.columns()
        self.left_out = {c.name: c.left_out for c in found if c.left_out} | self.unused_table
        if not found:  # the error says what is missing
            return self._read(f"SELECT * FROM {self.table}", "products")
        return self.select([c for c in found if not c.left_out], "", "")

    def _products(self, after: str, where: str) -> Iterator[pa.RecordBatch]:
        mapping = self.options.columns
        found = self.columns()
        given = [c.name for c in found]
        self.left_out = {c.name: c.left_out for c in found if c.left_out} | mapping.left_out(given) | self.unused_table
        chosen = [c for c in found if not c.left_out]
        order = mapping.column_of("product_id", given)
        if order and order not in [c.name for c in chosen]:  # the caller says which columns there are
            yield from mapping.over(self._read(f"SELECT * FROM {self.table}", "products"), self.name, {})
            return
        order = order if self.by_bytes else ""
        later = [self.later_id(order, after)] if order and after else []
        rows = self.select(chosen, " AND ".join([*later, *([where] if where else [])]), order)
        mapped = mapping.over(rows, self.name, {})
        for batch in mapped if order else sorted_batches(mapped, BATCH_ROWS):
            yield batch if order else beyond(batch, after)

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
                if self.lost(error):
                    raise CatalogAway(f"{self.name} does not answer any more: {error_line(error)}") from None
                raise_unreadable(error, self.name, table, self.options.query)


def raise_unreadable(error: Exception, name: str, table: str, query: str) -> None:
    """Raises CatalogError for what a driver says; nothing for a table of photos that is not there."""
    if isinstance(error, CatalogError):
        raise error
    missing = "no such table" in str(error) or f'relation "{table}" does not exist' in str(error)
    if missing and table == "photos":
        return
    asked = table == "products" and bool(query)
    if missing and not asked:
        raise CatalogMissing(f"{name}: there is no table {table} in it; make one with: vitrine catalog load") from None
    what = f"{SETTING} cannot be run" if asked else f"cannot read the table {table}"
    raise CatalogError(f"{name}: {what}: {error_line(error)}") from None


def check_names(names: list[str], where: str) -> None:
    """Raises CatalogError when two columns of the query have one name."""
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise CatalogError(f"{where}: {SETTING} gives the column {twice} more than once; give each a name with AS")


def quoted(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def sql_literal(text: str) -> str:
    """A quoted SQL literal; neither driver streams the result of a parameterised query."""
    return "'" + text.replace("'", "''") + "'"
