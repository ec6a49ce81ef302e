"""A catalogue folder: products.csv or products.parquet and, optionally, photos.csv or photos.parquet."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tasks.catalog.sources.source import BATCH_ROWS, file_stamp
from tasks.errors import CatalogError, CatalogMissing


class FolderSource:
    """A folder with products.csv|parquet and, optionally, photos.csv|parquet."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CatalogMissing(f"{folder}: there is no such catalogue folder")
        self.folder, self.name, self.image_root = folder, str(folder), str(folder.resolve())
        self.moment = file_stamp(*sorted(f for f in folder.iterdir() if f.suffix in (".csv", ".parquet")))

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        table = self._table("products")
        if table is None:
            raise CatalogMissing(f"{self.folder}: neither products.csv nor products.parquet is in the folder")
        if "product_id" in table.column_names:
            table = table.sort_by("product_id")
            if after:
                table = table.filter(
                    pc.greater(table["product_id"], pa.scalar(after).cast(table.schema.field("product_id").type))
                )
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
