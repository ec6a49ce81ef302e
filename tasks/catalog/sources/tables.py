"""Shared by tables of Parquet files: Parquet folders, Delta Lake and Iceberg, on local disk or s3://."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pads

from serving.contract.addresses import error_line
from tasks import storage
from tasks.catalog.sources.folder import without_views
from tasks.catalog.sources.pictures import with_pictures
from tasks.catalog.sources.sorting import beyond, sorted_batches
from tasks.catalog.sources.source import BATCH_ROWS, SourceOptions
from tasks.errors import CatalogError, VitrineError

PARAMETERS = ("image_root", "images", "photos", "version", "snapshot")
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class TableAddress:
    """`kind`:`place`[?image_root=…&images=…&photos=…], such as delta:s3://bucket/products?image_root=s3://pictures.

    `images` is the table of products' pictures (product_id, image, position, kind) and `photos` that of labelled photos, of the same
    kind where they name none; `version` a Delta version, `snapshot` an Iceberg
    snapshot id (default: the newest).
    """

    kind: str
    place: str
    image_root: str = ""
    images: str = ""
    photos: str = ""
    version: str = ""
    snapshot: str = ""

    @classmethod
    def parse(cls, address: str) -> "TableAddress":
        """Raises CatalogError for an unknown parameter."""
        kind, _, rest = address.partition(":")
        place, _, query = rest.partition("?")
        found = {}
        for part in filter(None, query.split("&")):
            name, _, value = part.partition("=")
            if name not in PARAMETERS:
                raise CatalogError(f"{address}: there is no parameter {name}; expected {', '.join(PARAMETERS)}")
            found[name] = unquote(value)
        return cls(kind, place.removeprefix("file://"), **found)


class TableSource(ABC):
    """A table of Parquet files at one version, streamed and sorted by us; pictures lie below the table unless image_root says so."""

    def __init__(self, address: TableAddress, options: SourceOptions) -> None:
        self.address, self.options = address, options
        self.name = f"{address.kind}:{address.place}"
        self.image_root = address.image_root or address.place
        self.left_out: dict[str, str] = {}
        self.rejected: list[str] = []
        self.moment = ""
        self.pictures: TableSource | None = None
        """The table that the address's parameter `images` names."""

    @abstractmethod
    def rows(self) -> Iterator[pa.RecordBatch]:
        """The table's rows in its own order."""

    def unsorted(self) -> Iterator[pa.RecordBatch]:
        """The products in the table's own order, which costs no reading to the end."""
        return self.options.columns.over(self.raw(), self.name, self.left_out)

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        ordered = (beyond(batch, after) for batch in sorted_batches(self.unsorted(), BATCH_ROWS))
        yield from with_pictures(ordered, self.picture_rows(), self.pictures.name if self.pictures else "")

    def picture_rows(self) -> Iterator[pa.RecordBatch] | None:
        """Rows of the table of pictures as they come (product_id, image, position, kind); None without one."""
        return self.pictures.raw() if self.pictures else None

    def photos(self) -> Iterator[pa.RecordBatch]:
        """Those of the address's parameter `photos`; none without it."""
        if not self.address.photos:
            return
        from tasks.catalog.sources.open import open_beside

        yield from open_beside(self.address, self.address.photos).raw()

    def raw(self) -> Iterator[pa.RecordBatch]:
        """The products with the table's own columns, in its own order."""
        try:
            for batch in self.rows():
                yield without_views(batch)
        except VitrineError:
            raise
        except Exception as error:  # each library has its own error classes
            storage.raise_if_away(self.address.place, error)
            raise unreadable(self.name, error) from None


def unreadable(name: str, error: Exception) -> CatalogError:
    """What a library says of a table, in one sentence."""
    return CatalogError(f"{name}: the table cannot be read: {error_line(error)}")


def dataset_batches(dataset: pads.Dataset) -> Iterator[pa.RecordBatch]:
    """Batches of a dataset one after the other, with no file read ahead or held in whole."""
    scanning = pads.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=BUFFER_BYTES, pre_buffer=False)
    reader = dataset.scanner(
        batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0, fragment_scan_options=scanning, use_threads=False
    ).to_reader()
    with closing(reader):
        yield from pieces(reader)


def pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of at most BATCH_ROWS rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)
