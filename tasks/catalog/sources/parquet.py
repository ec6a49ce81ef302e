"""Catalogue source: a folder of Parquet files, or one, on local disk or s3://; folders called name=value are columns."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.dataset as pads

from serving.contract.addresses import error_line
from tasks import storage
from tasks.catalog.sources.source import SourceOptions
from tasks.catalog.sources.tables import TableAddress, TableSource, dataset_batches, unreadable
from tasks.errors import CatalogError, CatalogMissing


class ParquetSource(TableSource):
    """All files below a folder, those beginning with . or _ left out. A column that one file lacks is missing in its rows."""

    def __init__(self, address: TableAddress, options: SourceOptions) -> None:
        super().__init__(address, options)
        place = address.place.rstrip("/")
        found = [place] if storage.exists(place) else storage.list_files(place, ".parquet", recursive=True)
        self.files = [f for f in found if f == place or not _hidden(f[len(place) :])]
        if not self.files:
            raise CatalogMissing(f"{self.name}: there is no Parquet file")
        if not address.image_root and found == [place]:
            self.image_root = place.rpartition("/")[0]
        stamps = [storage.validator(f) for f in self.files]
        if None not in stamps:
            told = "\n".join(f"{f[len(place) :]} {stamp}" for f, stamp in zip(self.files, stamps, strict=True))
            self.moment = f"{len(stamps)} files {hashlib.sha256(told.encode()).hexdigest()}"

    def rows(self) -> Iterator[pa.RecordBatch]:
        fs, root = storage.filesystem(self.address.place.rstrip("/"))
        paths = [storage.filesystem(f)[1] for f in self.files]
        base = root if paths != [root] else None
        read = pads.dataset(
            paths, filesystem=fs, format="parquet", partitioning=pads.partitioning(flavor="hive"), partition_base_dir=base,
            schema=self._schema(paths, fs, base),
        )  # fmt: skip
        return dataset_batches(read)

    def _schema(self, paths: list[str], fs: pa.fs.FileSystem, base: str | None) -> pa.Schema:
        """The columns of all files together."""
        found: list[pa.Schema] = []
        for path in paths:
            try:
                file = pads.FileSystemDatasetFactory(
                    fs, [path], pads.ParquetFileFormat(),
                    pads.FileSystemFactoryOptions(partitioning=pads.HivePartitioning.discover(), partition_base_dir=base),
                )  # fmt: skip
                found.append(pa.schema([_plain(field) for field in file.inspect()]))
            except (pa.ArrowInvalid, OSError) as error:
                storage.raise_if_away(self.address.place, error)
                raise CatalogError(f"{path}: not a readable Parquet file: {error_line(error)}") from None
        try:
            return pa.unify_schemas(found, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise unreadable(self.name, error) from None


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _plain(field: pa.Field) -> pa.Field:
    """A column of dictionaries, which another file may have as plain values, as these."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
