"""A snapshot: an immutable Parquet copy of the catalogue at one moment, whose manifest is written last."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tasks import storage
from tasks.catalog.schema import PHOTO_SCHEMA, to_photos, to_products
from tasks.catalog.source import Source, open_source
from tasks.errors import CatalogError

MANIFEST = "_manifest.json"
PART_ROWS = 250_000


@dataclass(frozen=True)
class Snapshot:
    """Reference to a published snapshot. `content_sha256` covers products and photos, not when or where they were copied."""

    id: str
    uri: str
    rows: int
    photos: int
    content_sha256: str
    source: str
    image_root: str


def take_snapshot(source_uri: str, snapshots_uri: str, snapshot_id: str) -> Snapshot:
    """Copies the catalogue to <snapshots_uri>/<snapshot_id>; a snapshot of this id that is whole is returned as it is.

    Raises CatalogError with one sentence for a missing column, a duplicate product_id, two ids with one key, a photo of an
    unknown product, or an empty catalogue. Without its manifest a snapshot does not exist, so nothing is half-published.
    """
    uri = storage.join(snapshots_uri, snapshot_id)
    if storage.exists(storage.join(uri, MANIFEST)):
        return read_snapshot(uri)
    started = datetime.now(UTC).isoformat()
    with open_source(source_uri) as source:
        return write_snapshot(source, source_uri, uri, snapshot_id, started)


def write_snapshot(source: Source, source_uri: str, uri: str, snapshot_id: str, started: str) -> Snapshot:
    """Copies an open source to `uri`, whatever a killed attempt left there; `started` is when its rows were fixed."""
    for leftover in storage.listing(uri):
        storage.delete(leftover)
    writer = _Writer(uri)
    keys = _write_products(source, writer)
    photos = _write_photos(source, writer, keys)
    if not len(keys):
        raise CatalogError(f"{source_uri}: the catalogue has no products")
    snapshot = Snapshot(snapshot_id, uri, len(keys), photos, writer.content.hexdigest(), source_uri, source.image_root)
    finished = datetime.now(UTC).isoformat()
    record = {"snapshot": asdict(snapshot), "files": writer.files, "started": started, "finished": finished}
    storage.write_json(storage.join(uri, MANIFEST), record)
    return snapshot


def read_snapshot(uri: str) -> Snapshot:
    """The snapshot at a uri. Raises CatalogError when it was never finished."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise CatalogError(f"{uri}: no snapshot was published there (it has no {MANIFEST})")
    return Snapshot(**storage.read_json(storage.join(uri, MANIFEST))["snapshot"])


def started_at(uri: str) -> datetime:
    """When the copying of a snapshot began: what was in the catalogue before is in it."""
    return datetime.fromisoformat(storage.read_json(storage.join(uri, MANIFEST))["started"])


def product_batches(uri: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The snapshot's products in order of product_id, batch by batch."""
    fs, path = storage.filesystem(uri)
    files = [f"{path}/{f['name']}" for f in _files(uri) if f["name"].startswith("part-")]
    yield from pads.dataset(files, filesystem=fs).to_batches(columns=columns)


def product_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The named columns of all products: for columns that are small enough to hold."""
    return pa.Table.from_batches(product_batches(uri, columns))


def photo_table(uri: str) -> pa.Table:
    """All labelled photos: photo_uri, product_id, split."""
    fs, path = storage.filesystem(uri)
    files = [f"{path}/{f['name']}" for f in _files(uri) if f["name"].startswith("photos-")]
    return pads.dataset(files, filesystem=fs).to_table() if files else PHOTO_SCHEMA.empty_table()


def _files(uri: str) -> list[dict]:
    return storage.read_json(storage.join(uri, MANIFEST))["files"]


class _Writer:
    """Writes parts and keeps their checksums and the running hash of the content."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files: list[dict] = []
        self.content = hashlib.sha256()

    def write(self, kind: str, table: pa.Table) -> None:
        number = sum(f["name"].startswith(f"{kind}-") for f in self.files)
        name = f"{kind}-{number:05d}.parquet"
        uri = storage.join(self.uri, name)
        with storage.writer(uri) as stream:
            pq.write_table(table, stream, compression="zstd")
        self.files.append({"name": name, "rows": len(table), "sha256": storage.sha256(uri), "bytes": storage.size(uri)})
        self._hash(table)

    def _hash(self, table: pa.Table) -> None:
        """Adds every value, column by column; parts are cut at fixed row counts, so equal rows give an equal hash."""
        for name in table.column_names:
            self.content.update(f"\n{name}:{table[name].type}\n".encode())
            sink = pa.BufferOutputStream()
            column = table.select([name]).combine_chunks()
            with pa.ipc.new_stream(sink, column.schema.remove_metadata()) as stream:
                stream.write_table(column)
            self.content.update(sink.getvalue())


def _write_products(source: Source, writer: _Writer) -> dict[str, int]:
    """Writes the products in parts of PART_ROWS; gives product_id -> key. Raises CatalogError for duplicates and collisions."""
    keys: dict[str, int] = {}
    owner: dict[int, str] = {}
    waiting: list[pa.Table] = []

    def flush(everything: bool) -> None:
        table = pa.concat_tables(waiting, promote_options="default")
        waiting.clear()
        while len(table) >= PART_ROWS or (everything and len(table)):
            writer.write("part", table.slice(0, PART_ROWS).combine_chunks())
            table = table.slice(PART_ROWS)
        if len(table):
            waiting.append(table)

    for batch in source.products():
        table = to_products(batch, source.name)
        for product_id, key in zip(table["product_id"].to_pylist(), table["key"].to_pylist(), strict=True):
            if product_id in keys:
                raise CatalogError(f"{source.name}: product_id {product_id!r} occurs more than once; ids must be unique")
            if owner.setdefault(key, product_id) != product_id:
                raise CatalogError(f"{source.name}: products {owner[key]!r} and {product_id!r} have the same key; rename one")
            keys[product_id] = key
        waiting.append(table)
        flush(everything=False)
    if waiting:
        flush(everything=True)
    return keys


def _write_photos(source: Source, writer: _Writer, keys: dict[str, int]) -> int:
    """Writes the labelled photos, ordered by uri whatever the source's order was; gives how many there are."""
    known_ids = pa.array(list(keys), pa.string())
    batches = []
    for batch in source.photos():
        table = to_photos(batch, source.name)
        known = pc.is_in(table["product_id"], known_ids)
        if not pc.all(known).as_py():
            row = pc.index(known, False).as_py()
            photo, product = table["photo_uri"][row].as_py(), table["product_id"][row].as_py()
            raise CatalogError(f"{source.name}: photo {photo!r} shows product {product!r}, which is not in the catalogue")
        batches.append(table)
    if not batches:
        return 0
    photos = pa.concat_tables(batches).sort_by([("photo_uri", "ascending"), ("product_id", "ascending")])
    for start in range(0, len(photos), PART_ROWS):
        writer.write("photos", photos.slice(start, PART_ROWS).combine_chunks())
    return len(photos)
