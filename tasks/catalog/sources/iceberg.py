"""Catalogue source: an Iceberg table, of a catalogue of tables or by its folder, on local disk or s3:// (extra `iceberg`)."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks import storage
from tasks.catalog.sources.source import SourceOptions
from tasks.catalog.sources.tables import TableAddress, TableSource, pieces, unreadable
from tasks.errors import CatalogError, CatalogMissing

METADATA = re.compile(r"/v?(\d+)[^/]*\.metadata\.json$")


class IcebergSource(TableSource):
    """One snapshot of an Iceberg table; its moment is the table's id and that snapshot's.

    `place` is <catalog>/<namespace>.<table>, the catalogue set up as pyiceberg wants it (~/.pyiceberg.yaml, PYICEBERG_CATALOG__…), or
    a table's folder or metadata file, read without a catalogue.
    """

    def __init__(self, address: TableAddress, options: SourceOptions) -> None:
        super().__init__(address, options)
        try:
            import pyiceberg.exceptions
        except ImportError:
            raise CatalogError(
                "Iceberg tables need the package pyiceberg; install the extra: pip install 'vitrine[iceberg]'"
            ) from None
        try:
            self.table: Any = _by_folder(address.place) if "://" in address.place or address.place.startswith(("/", ".")) else (
                _by_catalog(address.place)
            )  # fmt: skip
        except (CatalogError, CatalogMissing):
            raise
        except (pyiceberg.exceptions.NoSuchTableError, pyiceberg.exceptions.NoSuchNamespaceError, FileNotFoundError):
            raise CatalogMissing(f"{self.name}: there is no such Iceberg table") from None
        except Exception as error:
            raise unreadable(self.name, error) from None
        self.image_root = address.image_root or self.table.location().removeprefix("file://")
        newest = self.table.current_snapshot()
        if address.snapshot and not (
            address.snapshot.isdecimal() and self.table.snapshot_by_id(int(address.snapshot)) is not None
        ):
            raise CatalogError(f"{self.name}: there is no snapshot {address.snapshot!r}")
        self.snapshot = int(address.snapshot) if address.snapshot else newest.snapshot_id if newest else None
        self.moment = f"{self.table.metadata.table_uuid} snapshot {self.snapshot}"

    def rows(self) -> Iterator[pa.RecordBatch]:
        if self.snapshot is None:
            return iter(())
        return pieces(self.table.scan(snapshot_id=self.snapshot).to_arrow_batch_reader())


def _by_catalog(place: str) -> Any:
    from pyiceberg.catalog import load_catalog

    name, _, table = place.partition("/")
    if not table:
        raise CatalogError(
            f"iceberg:{place}: expected iceberg:<catalog>/<namespace>.<table>, or a table's folder such as iceberg:s3://bucket/products"
        )
    return load_catalog(name, **_properties()).load_table(table)


def _by_folder(place: str) -> Any:
    from pyiceberg.table import StaticTable

    return StaticTable.from_metadata(_metadata_file(place), _properties())


def _metadata_file(place: str) -> str:
    """The metadata file of a table's folder: what its version-hint.text names, else the one of the highest number."""
    if place.endswith(".metadata.json"):
        return place
    folder = storage.join(place, "metadata")
    files = {f: int(found[1]) for f in storage.list_files(folder, ".metadata.json") if (found := METADATA.search(f))}
    hint = storage.join(folder, "version-hint.text")
    if storage.exists(hint):
        number = storage.read_bytes(hint).decode().strip()
        files = {f: n for f, n in files.items() if str(n) == number} or files
    if not files:
        raise CatalogMissing(f"iceberg:{place}: there is no Iceberg table (no metadata/*.metadata.json)")
    return max(files, key=lambda f: (files[f], f))


def _properties() -> dict[str, str]:
    """S3 settings of the environment, as for every AWS tool."""
    endpoint, region = storage.s3_endpoint_and_region()
    found = {
        "s3.endpoint": endpoint, "s3.region": region, "s3.access-key-id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "s3.secret-access-key": os.environ.get("AWS_SECRET_ACCESS_KEY"), "s3.session-token": os.environ.get("AWS_SESSION_TOKEN"),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}
