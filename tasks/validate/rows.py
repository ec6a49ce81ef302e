"""Raw catalogue rows with their line numbers, for error messages."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.catalog.schema import ALIASES, MAPPING_PROBLEM, column_as_written, read_products, to_photos
from tasks.catalog.sources import open_source
from tasks.catalog.sources.csv_format import CsvFormat
from tasks.catalog.sources.folder import NUMERIC, FolderSource
from tasks.catalog.sources.pictures import attach_pictures
from tasks.catalog.sources.source import SourceOptions
from tasks.catalog.sources.tables import TableSource
from tasks.errors import CatalogError

FILE_ROWS = 1_000_000
DATABASE_ROWS = 20_000
LONGEST_FIELD = 10_000_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Products or photos. `rows()` gives (place, row), or (place, problem) for a malformed row; `whole` when it gives all.

    `written` are the names of the columns as the catalogue writes them, `columns` the snapshot's names of the same. `read()`
    converts the same rows as a snapshot does and raises CatalogError where that fails.
    """

    name: str
    columns: list[str]
    rows: Callable[[], Iterator[tuple[str, Row | str]]]
    read: Callable[[], None]
    whole: bool
    written: tuple[str, ...] = ()

    def as_written(self, column: str) -> str:
        """How the catalogue names a column of a snapshot."""
        return column_as_written(self.written, column)


@dataclass(frozen=True)
class Tables:
    """The tables of a catalogue; `photos` is None when there is no such table. Rows of products have their further pictures as `images`
    where the catalogue has such lists."""

    products: Table
    photos: Table | None
    image_root: str


@contextmanager
def open_tables(uri: str, options: SourceOptions | None = None) -> Iterator[Tables]:
    """Tables of a folder (up to FILE_ROWS rows) or of a database or table (first DATABASE_ROWS rows). Raises CatalogError."""
    with open_source(uri, options) as source:
        if isinstance(source, FolderSource):
            products, photos = _file(source, "products"), _file(source, "photos")
        else:
            batches = source.unsorted if isinstance(source, TableSource) else source.products
            rows = source.picture_rows() if isinstance(source, TableSource) else None  # a database's products have theirs already
            products = _arrow("products", "product_id", lambda: _pictured(batches(), rows), read_products, DATABASE_ROWS)
            photos = _arrow("photos", "photo_uri", source.photos, to_photos, DATABASE_ROWS)
        if products is None:
            raise CatalogError(f"{source.name}: neither products.csv nor products.parquet is in the folder")
        yield Tables(products, photos, source.image_root)


def _file(source: FolderSource, kind: str) -> Table | None:
    convert = read_products if kind == "products" else to_photos
    products = source.unsorted if source.picture_rows() is None else source.products
    batches = products if kind == "products" else source.photos
    path = source.folder / f"{kind}.csv"
    parquet = (source.folder / f"{kind}.parquet").is_file()
    shaped = kind == "products" and (bool(source.options.columns) or source.picture_rows() is not None)
    if parquet or (shaped and path.is_file()):  # what is mapped or joined has no line of its own
        return _arrow(f"{kind}.{'parquet' if parquet else 'csv'}", "", batches, convert, FILE_ROWS)
    return _csv(path, batches, convert, source.options.csv) if path.is_file() else None


def _csv(
    path: Path,
    batches: Callable[[], Iterator[pa.RecordBatch]],
    convert: Callable[[pa.RecordBatch, str], object],
    stated: CsvFormat,
) -> Table:
    """Reads a CSV file row by row, with the line number where each row starts."""
    csv.field_size_limit(LONGEST_FIELD)
    form, written = stated.of(path)
    header = [ALIASES.get(n, n) for n in written]
    errors = "surrogateescape" if form.encoding.startswith("utf-8") else "replace"

    def rows() -> Iterator[tuple[str, Row | str]]:
        with path.open(encoding=form.encoding, errors=errors, newline="") as stream:
            reader = csv.reader(stream, delimiter=form.delimiter)
            next(reader, [])
            for _ in range(FILE_ROWS):
                place = f"line {reader.line_num + 1}"
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield place, f"not readable as CSV: {error}"
                    return
                if not fields:
                    continue
                yield place, _row(header, fields, form.decimal)

    def read() -> None:
        for batch in batches():
            convert(batch, path.name)

    return Table(path.name, header, rows, read, _lines(path) <= FILE_ROWS, tuple(written))


def _row(header: list[str], fields: list[str], decimal: str) -> Row | str:
    if len(fields) != len(header):
        return f"{len(fields)} fields where the header has {len(header)}"
    try:
        "".join(fields).encode()  # bytes that are no UTF-8 were read as surrogates
    except UnicodeEncodeError:
        return "bytes that are not UTF-8"
    row = dict(zip(header, fields, strict=True))
    if decimal == ",":
        row |= {n: row[n].replace(".", "?").replace(",", ".") for n in NUMERIC if n in row}
    return row


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


def _arrow(
    name: str, id_column: str, batches: Callable[[], Iterator[pa.RecordBatch]],
    convert: Callable[[pa.RecordBatch, str], object], most: int,
) -> Table | None:  # fmt: skip
    """The first `most` rows of a Parquet file or database table, identified by number or `id_column`."""
    found = list(_first(batches(), most + 1))
    if not found:
        return None
    count = sum(b.num_rows for b in found)
    written = tuple(n for n in found[0].schema.names if n != MAPPING_PROBLEM)
    columns = [ALIASES.get(n, n) for n in written]

    def rows() -> Iterator[tuple[str, Row | str]]:
        all_rows = (row for batch in found for row in batch.select(written).rename_columns(columns).to_pylist())
        for number, row in enumerate(islice(all_rows, most), 1):
            yield f"{name} {row[id_column]!r}" if row.get(id_column) else f"row {number}", row

    def read() -> None:
        for batch in found:
            convert(batch, name)

    return Table(name, columns, rows, read, count <= most, written)


def _pictured(batches: Iterator[pa.RecordBatch], rows: Iterator[pa.RecordBatch] | None) -> Iterator[pa.RecordBatch]:
    """The first DATABASE_ROWS products and one, with the pictures of a table of pictures."""
    yield from (
        batches if rows is None else attach_pictures(list(_first(batches, DATABASE_ROWS + 1)), rows, "the table of pictures")
    )


def _first(batches: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    held = 0
    for batch in batches:
        yield batch.slice(0, most - held)
        held += batch.num_rows
        if held >= most:
            return
