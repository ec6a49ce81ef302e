"""A snapshot: an immutable Parquet copy of the catalogue at one moment, whose manifest is written last."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.addresses import without_secrets
from serving.contract.keys import product_keys
from tasks import storage
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.schema import DEFAULT_LIMITS, PHOTO_SCHEMA, RowLimits, read_products, to_photos
from tasks.catalog.snapshot_writer import (
    FURTHER,
    JOURNAL,
    LEFT_OUT,
    TITLES,
    UNUSABLE,
    UNUSABLE_SCHEMA,
    SnapshotWriter,
    part_batches,
)
from tasks.catalog.sources import Source, SourceOptions, open_source
from tasks.errors import CatalogError, CatalogMissing
from tasks.progress import Progress
from tasks.records import Record

log = logging.getLogger(__name__)

MANIFEST = "_manifest.json"
PART_ROWS = 250_000
PHOTO_ORDER = [("photo_uri", "ascending"), ("product_id", "ascending")]


@dataclass(frozen=True)
class Snapshot(Record):
    """Reference to a published snapshot. `content_sha256` covers products and photos, not when or where they were copied.

    `orphan_photos` were left out because the catalogue does not have the product that they show; `photos` does not count them.
    `quarantined_rows` could not be used (`unusable_rows` has each with its reason); `rows` does not count them. `left_out` says why
    a column of the catalogue is not in the snapshot. `further_pictures` are those in the column images, which is there where there is
    one; `pictures_left_out` were too many of a product, or had too long an address. `titles` are products that name no picture.
    """

    id: str
    uri: str
    rows: int
    photos: int
    content_sha256: str
    source: str
    image_root: str
    orphan_photos: int = 0
    quarantined_rows: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    further_pictures: int = 0
    pictures_left_out: int = 0
    titles: int = 0

    @property
    def pictures(self) -> int:
        """Number of pictures of all products: a main one each, or a title in its place, and the further ones."""
        return self.rows + self.further_pictures

    @property
    def orphans(self) -> str:
        """The photos left out, as text that continues a sentence; "" when there were none."""
        count, or_bare = self.orphan_photos, " or has no picture" if self.titles else ""
        return f"labelled photos left out because their product is not in the catalogue{or_bare}: {count}" if count else ""


def take_snapshot(source_uri: str, snapshots_uri: str, snapshot_id: str, options: SourceOptions | None = None) -> Snapshot:
    """Copies the catalogue to <snapshots_uri>/<snapshot_id>; a complete snapshot of this id is returned as it is.

    Rows that cannot be used, or are beyond the limits of `options`, are set aside with their reasons.

    A copy that was killed goes on after its last whole part if nothing was written to the catalogue since, else it starts anew:
    a snapshot never holds rows of two moments. Memory holds one part and 8 bytes a product.

    Photos whose product is not in the catalogue (it was deleted, say) are left out and counted.

    Raises CatalogError with one sentence for a missing column, a duplicate product_id, two ids with one key or no usable row;
    CatalogMissing where there is no product at all. Without its manifest a snapshot does not exist, so nothing is half-published.
    """
    uri = storage.join(snapshots_uri, snapshot_id)
    if storage.exists(storage.join(uri, MANIFEST)):
        return read_snapshot(uri)
    started = datetime.now(UTC).isoformat()
    options = options or SourceOptions()
    with open_source(source_uri, options) as source:
        return write_snapshot(source, without_secrets(source_uri), uri, snapshot_id, started, options.limits)


def write_snapshot(
    source: Source, source_uri: str, uri: str, snapshot_id: str, started: str, limits: RowLimits = DEFAULT_LIMITS
) -> Snapshot:
    """Copies an open source to `uri`, resuming a killed attempt.

    `source_uri` is stored as it is; `started` is when the source's view was fixed.
    """
    writer = SnapshotWriter(uri, source.moment, started)
    _write_products(source, writer, limits)
    keys = _checked_keys(writer, source)
    unusable = _write_unusable(source, writer)
    if unusable and not len(keys):
        raise CatalogError(f"{source_uri}: none of its {len(unusable)} rows can be used; the first: {unusable[0]['sentence']}")
    if not len(keys):
        raise CatalogMissing(f"{source_uri}: the catalogue has no products")
    photos, orphans = _write_photos(source, writer, _depicted(writer, keys))
    root = source.image_root
    snapshot = Snapshot(
        snapshot_id, uri, len(keys), photos, writer.content_sha256(), source_uri, root, orphans, len(unusable), source.left_out,
        writer.count(FURTHER), writer.count(LEFT_OUT), writer.count(TITLES),
    )  # fmt: skip
    if snapshot.pictures_left_out:
        log.warning(
            "%s: %d pictures are left out: more than VITRINE_MAX_PICTURES of a product, or an address longer than "
            "VITRINE_MAX_URI_LENGTH", source.name, snapshot.pictures_left_out,
        )  # fmt: skip
    finished = datetime.now(UTC).isoformat()
    record = {"snapshot": asdict(snapshot), "files": writer.files, "started": writer.started, "finished": finished}
    storage.write_json(storage.join(uri, MANIFEST), record)
    storage.delete(storage.join(uri, JOURNAL))
    return snapshot


def read_snapshot(uri: str) -> Snapshot:
    """The snapshot at a uri. Raises CatalogError when it is incomplete."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise CatalogError(f"{uri}: no snapshot was published there (it has no {MANIFEST})")
    found = storage.read_json(storage.join(uri, MANIFEST))["snapshot"]
    return Snapshot(**found | {"source": without_secrets(found["source"])})  # those of earlier releases hold passwords


def started_at(uri: str) -> datetime:
    """When the copying of a snapshot began; earlier changes are included."""
    return datetime.fromisoformat(storage.read_json(storage.join(uri, MANIFEST))["started"])


def product_batches(uri: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The snapshot's products in order of product_id, batch by batch. Raises VitrineError for a part that is damaged."""
    files = _files(uri, "part-")
    further = any(FURTHER in file for file in files)
    if columns is not None and not further:  # one of before may have a column of that name, of the shop's own
        columns = [name for name in columns if name != IMAGES]
    for file in files:
        yield from part_batches(uri, file, columns, further)


def product_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The named columns of all products in memory: for small columns."""
    return pa.Table.from_batches(product_batches(uri, columns))


def photo_table(uri: str) -> pa.Table:
    """All labelled photos: photo_uri, product_id, split."""
    batches = [b for file in _files(uri, "photos-") for b in part_batches(uri, file, None)]
    return pa.Table.from_batches(batches) if batches else PHOTO_SCHEMA.empty_table()


def unusable_rows(uri: str) -> list[dict[str, str]]:
    """The rows set aside: product_id ("" where it has none), column, problem, and all of it as a sentence."""
    return [row for file in _files(uri, UNUSABLE) for batch in part_batches(uri, file, None) for row in batch.to_pylist()]


def _files(uri: str, prefix: str) -> list[dict]:
    return [f for f in storage.read_json(storage.join(uri, MANIFEST))["files"] if f["name"].startswith(prefix)]


def _write_products(source: Source, writer: SnapshotWriter, limits: RowLimits) -> None:
    """Writes the remaining products in parts of PART_ROWS; unusable rows are noted."""
    waiting: list[pa.Table] = []
    held = 0
    with Progress("copy the catalogue", 0, "products") as progress:
        for batch in source.products(writer.last_id) if writer.last_id else source.products():
            if not batch.num_rows:
                continue
            found = read_products(batch, source.name, limits)
            writer.set_aside(found.unusable)
            source.left_out.update(found.left_out)
            table = found.table
            if found.pictures_left_out is not None:
                table = table.append_column(LEFT_OUT, found.pictures_left_out)
            waiting.append(table)
            held += len(found.table)
            while held >= PART_ROWS:
                table = pa.concat_tables(waiting, promote_options="default")
                writer.write_products(_copied(table.slice(0, PART_ROWS)))
                rest = _copied(table.slice(PART_ROWS))  # a slice would keep the whole part in memory
                waiting, held = ([rest] if len(rest) else []), len(rest)
                progress.set(writer.rows)
        if held:
            writer.write_products(pa.concat_tables(waiting, promote_options="default").combine_chunks())
        progress.total = writer.rows
        progress.set(writer.rows)


def _copied(rows: pa.Table) -> pa.Table:
    """The rows in chunks of their own. A slice of one chunk would stay one, and its bytes, which are hashed, would not be the same."""
    return pa.concat_tables([rows.slice(0, 1), rows.slice(1)]).combine_chunks()


def _write_unusable(source: Source, writer: SnapshotWriter) -> list[dict[str, str]]:
    """Writes the rows set aside, with those that the source could not split into columns."""
    rows = writer.unusable + [{"product_id": "", "column": "", "problem": r, "sentence": r} for r in source.rejected]
    if rows:
        log.warning("%s: %d rows cannot be used and are left out (first: %s)", source.name, len(rows), rows[0]["sentence"])
        writer.write(UNUSABLE[:-1], pa.Table.from_pylist(rows, UNUSABLE_SCHEMA))
    return rows


def _checked_keys(writer: SnapshotWriter, source: Source) -> np.ndarray:
    """Sorted keys (n,) int64 of the products. Raises CatalogError for a duplicate id or a key collision."""
    parts = [batch["key"].to_numpy() for batch in writer.batches(["key"])]
    keys = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    keys.sort()
    twice = keys[1:][keys[1:] == keys[:-1]]
    if not len(twice):
        return keys
    wanted = pa.array(twice[:1])
    ids: list[str] = []
    for batch in writer.batches(["product_id", "key"]):
        ids += batch.filter(pc.is_in(batch["key"], wanted))["product_id"].to_pylist()
    writer_uri = storage.join(writer.uri, JOURNAL)
    storage.delete(writer_uri)  # a mended catalogue is copied from its start
    if len(set(ids)) < len(ids):
        again = next(i for i in ids if ids.count(i) > 1)
        raise CatalogError(f"{source.name}: product_id {again!r} occurs more than once; ids must be unique")
    raise CatalogError(f"{source.name}: products {ids[0]!r} and {ids[1]!r} have the same key; rename one")


def _depicted(writer: SnapshotWriter, keys: np.ndarray) -> np.ndarray:
    """Those of the sorted keys (n,) int64 whose product names a picture: no photo finds the others."""
    if not writer.count(TITLES):
        return keys
    bare = [b.filter(pc.equal(b["image_uri"], ""))["key"].to_numpy() for b in writer.batches(["key", "image_uri"])]
    return np.setdiff1d(keys, np.concatenate(bare), assume_unique=True)


def _write_photos(source: Source, writer: SnapshotWriter, keys: np.ndarray) -> tuple[int, int]:
    """Writes the labelled photos of known products that have a picture, ordered by uri.

    Gives how many there are, and how many were left out because their product is not among `keys` (n,) int64, sorted.
    """
    batches, orphans = [PHOTO_SCHEMA.empty_table()], [PHOTO_SCHEMA.empty_table()]
    keys = keys if len(keys) else np.full(1, -1)  # which is no key
    for batch in source.photos():
        if not batch.num_rows:
            continue
        table = to_photos(batch, source.name)
        shown = product_keys(table["product_id"].to_pylist())
        known = pa.array(keys[np.minimum(np.searchsorted(keys, shown), len(keys) - 1)] == shown)
        batches.append(table.filter(known))
        orphans.append(table.filter(pc.invert(known)))
    photos, left_out = (pa.concat_tables(tables).sort_by(PHOTO_ORDER) for tables in (batches, orphans))
    if len(left_out):
        first = left_out.slice(0, 1).to_pylist()[0]
        log.warning(
            "%s: %d of %d photos show a product that is not in the catalogue and are left out (first: %r shows product %r)",
            source.name, len(left_out), len(photos) + len(left_out), first["photo_uri"], first["product_id"],
        )  # fmt: skip
    for start in range(0, len(photos), PART_ROWS):
        writer.write("photos", photos.slice(start, PART_ROWS).combine_chunks())
    return len(photos), len(left_out)
