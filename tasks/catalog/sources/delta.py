"""Catalogue source: a Delta Lake table, on local disk or s3:// (extra `delta`)."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks import storage
from tasks.catalog.sources.source import SourceOptions
from tasks.catalog.sources.tables import TableAddress, TableSource, dataset_batches, pieces, unreadable
from tasks.errors import CatalogError, CatalogMissing

COLUMN_MAPPING = "delta.columnMapping.mode"
"""The property of tables whose columns may be renamed; delta-rs reads renamed columns as missing values."""


class DeltaSource(TableSource):
    """One version of a Delta table; its moment is the table's id and that version."""

    def __init__(self, address: TableAddress, options: SourceOptions) -> None:
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import TableNotFoundError
        except ImportError:
            raise CatalogError(
                "Delta tables need the package deltalake; install the extra: pip install 'vitrine[delta]'"
            ) from None
        super().__init__(address, options)
        version = address.version
        if version and not version.isdecimal():
            raise CatalogError(f"{self.name}: version {version!r} is not a number")
        try:
            self.table: Any = DeltaTable(address.place, int(version) if version else None, _storage_options(address.place))
        except (TableNotFoundError, FileNotFoundError):
            raise CatalogMissing(f"{self.name}: there is no Delta table (no folder _delta_log)") from None
        except Exception as error:
            raise unreadable(self.name, error) from None
        if (mode := self.table.metadata().configuration.get(COLUMN_MAPPING, "none")) != "none":
            raise CatalogError(
                f"{self.name}: its columns have other names in its files ({COLUMN_MAPPING} = {mode}), which cannot be read; "
                "write it to a table without column mapping"
            )
        self.moment = f"{self.table.metadata().id} version {self.table.version()}"

    def rows(self) -> Iterator[pa.RecordBatch]:
        from deltalake.exceptions import DeltaProtocolError

        try:
            dataset = self.table.to_pyarrow_dataset()
        except DeltaProtocolError:  # deletion vectors and other features that only its own engine reads
            return self._rows_of_engine()
        return dataset_batches(dataset)

    def _rows_of_engine(self) -> Iterator[pa.RecordBatch]:
        from deltalake import QueryBuilder

        reader = pa.RecordBatchReader.from_stream(QueryBuilder().register("t", self.table).execute("SELECT * FROM t"))
        return pieces(reader)


def _storage_options(place: str) -> dict[str, str] | None:
    """An endpoint of the environment without TLS must be allowed; the rest delta-rs reads there itself."""
    if not place.startswith("s3://"):
        return None
    endpoint, region = storage.s3_endpoint_and_region()
    options = {"AWS_REGION": region or "us-east-1"}
    if endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    return options
