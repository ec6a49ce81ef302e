"""A catalogue folder: products.csv or products.parquet and, optionally, images and photos, each as .csv or .parquet."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.contract.addresses import error_line
from tasks.catalog.sources.csv_format import CsvFormat
from tasks.catalog.sources.pictures import with_pictures
from tasks.catalog.sources.sorting import beyond, sorted_batches
from tasks.catalog.sources.source import BATCH_ROWS, SourceOptions, file_stamp
from tasks.errors import CatalogError, CatalogMissing

BLOCK_BYTES = 16 << 20
"""Bytes of a CSV file that are read at once: no row may be longer."""
NUMERIC = ("price", "popularity")
MOST_REJECTED = 1000


class FolderSource:
    """A folder with products.csv|parquet and, optionally, images.csv|parquet and photos.csv|parquet, streamed."""

    def __init__(self, folder: Path, options: SourceOptions | None = None) -> None:
        if not folder.is_dir():
            raise CatalogMissing(f"{folder}: there is no such catalogue folder")
        self.folder, self.name, self.image_root = folder, str(folder), str(folder.resolve())
        self.options = options or SourceOptions()
        self.left_out: dict[str, str] = {}
        self.rejected: list[str] = []
        self.moment = file_stamp(*sorted(f for f in folder.iterdir() if f.suffix in (".csv", ".parquet")))

    def raw(self) -> Iterator[pa.RecordBatch]:
        """The products with the file's own columns, in its own order."""
        batches = self._batches("products", self.rejected)
        if batches is None:
            raise CatalogMissing(f"{self.folder}: neither products.csv nor products.parquet is in the folder")
        return batches

    def unsorted(self) -> Iterator[pa.RecordBatch]:
        """The products in the file's own order, which costs no reading to the end, without the pictures of a file of their own."""
        return self.options.columns.over(self.raw(), self.name, self.left_out)

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        ordered = (beyond(batch, after) for batch in sorted_batches(self.unsorted(), BATCH_ROWS))
        yield from with_pictures(ordered, self.picture_rows(), f"{self.folder}/images")

    def picture_rows(self) -> Iterator[pa.RecordBatch] | None:
        """Rows of images.csv|parquet as they come (product_id, image, position, kind); None without such a file."""
        return self._batches("images", [])

    def photos(self) -> Iterator[pa.RecordBatch]:
        batches = self._batches("photos", self.rejected)
        if batches is None:
            return
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            yield batch
        if not rows:
            raise CatalogError(f"{self.folder}/photos.csv has no rows: remove the file, or name labelled photos in it")

    def _batches(self, name: str, rejected: list[str]) -> Iterator[pa.RecordBatch] | None:
        """The file's batches in its own order; None when there is no such file. Rows without their fields go to `rejected`."""
        parquet, csv = self.folder / f"{name}.parquet", self.folder / f"{name}.csv"
        if parquet.is_file():
            return parquet_batches(parquet)
        numeric = self.options.columns.numeric
        return csv_batches(csv, self.options.csv, rejected, numeric) if csv.is_file() else None


def parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file. Raises CatalogError naming the file when it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield without_views(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise CatalogError(f"{path}: not a readable Parquet file: {error_line(error)}") from None


def csv_batches(
    path: Path, stated: CsvFormat, rejected: list[str], numeric: Collection[str] = NUMERIC
) -> Iterator[pa.RecordBatch]:
    """The batches of a CSV file, every column as text. Rows with another number of fields go to `rejected` as sentences.

    `numeric` are the columns in which a decimal comma is one.

    Raises CatalogError naming the file when it cannot be read at all.
    """
    form, columns = stated.of(path)

    def reject(row: Any) -> str:
        if len(rejected) < MOST_REJECTED:
            rejected.append(f"row {row.number}: {row.actual_columns} fields where the header has {row.expected_columns}")
        return "skip"

    reading = pacsv.ReadOptions(
        use_threads=False, block_size=BLOCK_BYTES, column_names=columns, skip_rows_after_names=1,
        encoding="utf8" if form.encoding.startswith("utf-8") else form.encoding,
    )  # fmt: skip
    parsing = pacsv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True, invalid_row_handler=reject)
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False, check_utf8=False
    )
    try:
        with pacsv.open_csv(path, reading, parsing, converting) as reader:
            for batch in reader:
                yield _with_point(batch, numeric) if form.decimal == "," else batch
    except StopIteration:
        return
    except pa.ArrowInvalid as error:
        what = f"a row is longer than {BLOCK_BYTES >> 20} MiB" if "straddling" in str(error) else error_line(error)
        raise CatalogError(f"{path}: not a readable CSV file: {what}") from None
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: it does not read as {form.encoding}: {error}") from None


def _with_point(batch: pa.RecordBatch, numeric: Collection[str]) -> pa.RecordBatch:
    """Decimal commas of numeric columns as points; what had a point already is no number then."""
    for place, name in enumerate(batch.schema.names):
        if name in numeric:
            marked = pc.replace_substring(batch.column(place), ".", "?")
            batch = batch.set_column(place, name, pc.replace_substring(marked, ",", "."))
    return batch


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """View types, which Arrow does not sort or take, and dictionaries, of which a file keeps one a column, as plain values."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_dictionary(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).dictionary_decode())
        if pa.types.is_string_view(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pa.large_string()))
    return batch
