"""Where a catalogue is read from: SQLite, PostgreSQL, or a folder of CSV/Parquet. All of them as streams of Arrow batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tasks.errors import CatalogError

BATCH_ROWS = 50_000


class Source(Protocol):
    """One consistent view of a catalogue. Products come ordered by product_id; batches have at most about 64k rows."""

    name: str
    image_root: str

    def products(self) -> Iterator[pa.RecordBatch]: ...
    def photos(self) -> Iterator[pa.RecordBatch]: ...


@contextmanager
def open_source(uri: str) -> Iterator[Source]:
    """The catalogue at `uri`: sqlite:///file, postgresql://…, or a folder with products.csv or products.parquet.

    Pictures' relative paths are relative to the folder, or to the SQLite file's folder; for PostgreSQL to the query
    parameter `image_root` of the uri (default: the working directory).
    """
    if uri.startswith("sqlite:///"):
        path = Path(uri[len("sqlite:///") :])
        if not path.is_file():
            raise CatalogError(
                f"{uri}: there is no such database; make one with: vitrine catalog sample, or vitrine catalog load"
            )
        from adbc_driver_sqlite import dbapi

        with dbapi.connect(f"file:{path}?mode=ro") as connection:
            yield DatabaseSource(uri, str(path.parent), connection)
    elif uri.startswith(("postgresql://", "postgres://")):
        from adbc_driver_postgresql import dbapi as postgres

        address, root = split_image_root(uri)
        try:
            connection = postgres.connect(address)
        except postgres.Error as error:
            raise CatalogError(f"PostgreSQL does not answer: {str(error).strip().splitlines()[-1]}") from None
        with connection:
            yield DatabaseSource(address.rpartition("@")[2], root, connection)
    else:
        yield FolderSource(Path(uri.removeprefix("file://")))


def split_image_root(uri: str) -> tuple[str, str]:
    """A PostgreSQL uri without its `image_root` parameter, and that parameter (default ".")."""
    address, _, query = uri.partition("?")
    parts = [p for p in query.split("&") if p]
    root = next((p.partition("=")[2] for p in parts if p.startswith("image_root=")), ".")
    others = "&".join(p for p in parts if not p.startswith("image_root="))
    return (f"{address}?{others}" if others else address), root


@dataclass
class DatabaseSource:
    """Tables `products` and (optional) `photos`, read inside one read transaction of an ADBC connection."""

    name: str
    image_root: str
    connection: Any

    def products(self) -> Iterator[pa.RecordBatch]:
        # COLLATE "C" and SQLite's BINARY both order by bytes, so the same catalogue gives the same snapshot from either.
        order = 'product_id COLLATE "C"' if "postgres" in type(self.connection).__module__ else "product_id"
        return self._read(f"SELECT * FROM products ORDER BY {order}", "products")

    def photos(self) -> Iterator[pa.RecordBatch]:
        return self._read("SELECT * FROM photos", "photos")

    def _read(self, query: str, table: str) -> Iterator[pa.RecordBatch]:
        with self.connection.cursor() as cursor:
            if self.connection.__class__.__module__.startswith("adbc_driver_sqlite"):
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
            try:
                cursor.execute(query)
            except Exception as error:  # each ADBC driver has its own error classes
                if table == "photos" and ("no such table" in str(error) or "does not exist" in str(error)):
                    return
                raise CatalogError(f"{self.name}: cannot read the table {table}: {str(error).strip().splitlines()[0]}") from None
            yield from cursor.fetch_record_batch()


class FolderSource:
    """A folder with products.csv|parquet and, optionally, photos.csv|parquet."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CatalogError(f"{folder}: there is no such catalogue folder")
        self.folder, self.name, self.image_root = folder, str(folder), str(folder.resolve())

    def products(self) -> Iterator[pa.RecordBatch]:
        table = self._table("products")
        if table is None:
            raise CatalogError(f"{self.folder}: neither products.csv nor products.parquet is in the folder")
        if "product_id" in table.column_names:
            table = table.sort_by("product_id")
        yield from table.to_batches(max_chunksize=BATCH_ROWS)

    def photos(self) -> Iterator[pa.RecordBatch]:
        table = self._table("photos")
        if table is None:
            return
        if len(table) == 0:
            raise CatalogError(f"{self.folder}/photos.csv has no rows: remove the file, or name labelled photos in it")
        yield from table.to_batches(max_chunksize=BATCH_ROWS)

    def _table(self, name: str) -> pa.Table | None:
        parquet, csv = self.folder / f"{name}.parquet", self.folder / f"{name}.csv"
        if parquet.is_file():
            return pads.dataset(parquet).to_table() if parquet.stat().st_size else pq.read_table(parquet)
        if not csv.is_file():
            return None
        try:
            with csv.open() as stream:
                header = stream.readline().strip().replace('"', "").split(",")
            text = {n: pa.string() for n in header if n not in ("price", "popularity", "in_stock", "priority")}
            options = pacsv.ConvertOptions(column_types=text, strings_can_be_null=False)
            return pacsv.read_csv(csv, convert_options=options, parse_options=pacsv.ParseOptions(newlines_in_values=True))
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise CatalogError(f"{csv}: not a readable CSV file: {error}") from None
