"""The protocol of catalogue sources."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from tasks.catalog.column_mapping import ColumnMapping
from tasks.catalog.schema import DEFAULT_LIMITS, RowLimits
from tasks.catalog.sources.csv_format import CsvFormat

BATCH_ROWS = 50_000


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read, as far as the source itself does not say."""

    csv: CsvFormat = field(default_factory=CsvFormat)
    limits: RowLimits = DEFAULT_LIMITS
    """Bounds beyond which a row is set aside."""
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    """How the table's columns become a catalogue's."""
    query: str = ""
    """The SELECT that stands for a database's table `products`."""

    @property
    def stamp(self) -> str:
        """What a killed copy must have in common with the one that goes on, beside the catalogue's moment."""
        if not self.columns and not self.query:
            return ""
        return hashlib.sha256(repr((self.columns.texts, self.columns.dropped, self.query)).encode()).hexdigest()[:16]


class RawSource(Protocol):
    """A source whose own columns can be looked at before they are mapped."""

    name: str
    image_root: str
    options: SourceOptions
    left_out: dict[str, str]
    rejected: list[str]

    def raw(self) -> Iterator[pa.RecordBatch]:
        """The products with the source's own columns, in any order."""
        ...

    def picture_rows(self) -> Iterator[pa.RecordBatch] | None:
        """Rows of the table of pictures (product_id, image, position, kind), in any order; None without one."""
        ...

    def photos(self) -> Iterator[pa.RecordBatch]: ...


class Source(Protocol):
    """One consistent view of a catalogue. Products come ordered by product_id; batches have at most about 64k rows.

    Two views of one catalogue with the same `moment` hold the same rows; "" promises nothing. `left_out` names columns that are not
    read, with the reason; `rejected` are rows that could not be split into columns (known once the products were read to the end).
    """

    name: str
    image_root: str
    moment: str
    left_out: dict[str, str]
    rejected: list[str]

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """All products, or those with a product_id greater than `after`.

        What a table of pictures holds of them is in the column product_images (list<string>).
        """
        ...

    def photos(self) -> Iterator[pa.RecordBatch]: ...


def file_stamp(*files: Path) -> str:
    """Sizes and modification times of files (and of a database's write-ahead log): unchanged while nothing was written."""
    found = [p.stat() for f in files for p in (f, f.with_name(f.name + "-wal")) if p.is_file()]
    return " ".join(f"{s.st_ino}-{s.st_size}-{s.st_mtime_ns}" for s in found if s.st_size)  # a reader leaves an empty log
