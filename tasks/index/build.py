"""Builds each shard's base segment from the template. Deterministic to the byte."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import ContractError, FileRef, atomic_write, describe, verify
from serving.contract.keys import shard_of
from serving.contract.manifest import SegmentPictures
from serving.contract.palette import PALETTE
from serving.contract.segments import IMAGES, ROW_COLUMNS, write_rows
from tasks.catalog.snapshot import product_batches
from tasks.errors import VitrineError
from tasks.index.engine_families import SCANN, buildable
from tasks.index.faiss_files import FaissShard
from tasks.index.scann_files import ScannShard
from tasks.index.template import Template
from tasks.index.upload import Upload
from tasks.index.vectors import check_vectors, shard_batches, shard_counts, shard_palettes, shard_pictures
from tasks.progress import Progress
from tasks.records import Record, RecordError

BUILT = "built.json"
"""The record of a shard, written when its files are whole."""
LEFT_OUT = ("description", "priority", PALETTE)


@dataclass(frozen=True)
class BuiltShard(Record):
    """A shard's base segment of `rows` products: its files below the folder `uri`, by their names.

    `source` hashes what it was built from; `pictures` are there where a product has several. Without
    `index` its vectors lie in the `collection` of another engine; `digest` is the sha256 of what was uploaded.
    """

    shard: int
    rows: int
    family: str
    uri: str
    index: FileRef | None
    table: FileRef
    source: str = ""
    pictures: SegmentPictures | None = None
    digest: str = ""
    collection: str = ""

    @property
    def vectors(self) -> int:
        """The number of vectors: one a picture."""
        return self.rows if self.pictures is None else self.pictures.rows

    @property
    def files(self) -> tuple[FileRef, ...]:
        """All files of the segment."""
        refs = (self.index, self.table, self.pictures.table if self.pictures else None)
        return tuple(ref for ref in refs if ref is not None)


def source_of(vectors_uri: str, snapshot_uri: str, template: Template) -> str:
    """Hash of a shard's inputs: with equal ones the same files are built."""
    parts = [vectors_uri, snapshot_uri, template.factory, template.sha256, *template.collection_parts]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_shard(
    vectors_uri: str, snapshot_uri: str, template: Template, shard: int, folder: Path, upload: Upload | None = None
) -> BuiltShard:
    """Builds a shard's base segment in `folder`: index position i is table row i, by key, or regrouped for graphs.

    Where products have several pictures, position i is row i of the pictures, and the table's rows are in order of key. With `upload`
    the vectors go into a collection of another engine instead, never regrouped.

    What an earlier attempt built whole from the same input is verified and kept; anything else is built again.
    """
    source = source_of(vectors_uri, snapshot_uri, template)
    kept = None if upload else _existing_build(folder, source)  # the collection may have lost since what was uploaded
    if kept is not None:
        return kept
    keys = []
    total = shard_counts(vectors_uri, template.shards)[0][shard]
    into = upload or _index_files(template, total)
    with Progress(f"add vectors, shard {shard}", total, "vectors") as progress, into.adding() as add:
        for block, vectors in shard_batches(vectors_uri, shard):
            check_vectors(vectors, block, template.dim)
            add(vectors)
            keys.append(block)
            progress.add(len(block))
    key = np.concatenate(keys) if keys else np.zeros(0, np.int64)
    pictures = shard_pictures(vectors_uri, [shard])
    check_keys(key, pictures, shard, template.shards)
    palettes = shard_palettes(vectors_uri, [shard])
    order = into.rearranged(f", shard {shard}")
    if pictures is not None:
        table = product_rows(snapshot_uri, pictures, palettes, shard, template.shards)
        pictures = pictures if order is None else pictures.take(pa.array(order))
    else:
        if order is not None:
            key, palettes = key[order], palettes and palettes.take(pa.array(order))
        table = with_palettes(rows_of(snapshot_uri, key, shard, template.shards), palettes)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"base-{shard:05d}"
    index_ref = into.write(folder, name)
    write_rows(folder / f"{name}.parquet", table)
    table_ref = describe(folder / f"{name}.parquet", f"{name}.parquet")
    held = None
    if pictures is not None:
        write_rows(folder / f"{name}.pictures.parquet", pictures)
        held = SegmentPictures(
            rows=len(pictures), table=describe(folder / f"{name}.pictures.parquet", f"{name}.pictures.parquet")
        )
    built = BuiltShard(
        shard, len(table), template.family, str(folder), index_ref, table_ref, source, held, into.digest, template.collection
    )
    with atomic_write(folder / BUILT) as path:
        path.write_text(json.dumps(built.to_json()))
    return built


def rows_of(snapshot_uri: str, keys: np.ndarray, shard: int, shards: int) -> pa.Table:
    """A shard's row table: the snapshot's rows of these keys, in order. Raises VitrineError for an unknown key."""
    parts = []
    for batch in product_batches(snapshot_uri):
        table = pa.Table.from_batches([batch])
        kept = [*ROW_COLUMNS, *(n for n in table.column_names if n not in ROW_COLUMNS and n not in LEFT_OUT)]
        parts.append(table.select(kept).filter(pa.array(shard_of(table["key"].to_numpy(), shards) == shard)))
    table = pa.concat_tables(parts).combine_chunks()
    places = pc.index_in(pa.array(keys), table["key"])
    if places.null_count:
        lost = keys[pc.is_null(places).to_numpy(zero_copy_only=False)][0]
        raise VitrineError(f"a vector has key {lost}, which is not in the snapshot {snapshot_uri}: it belongs to another one")
    return table.take(places).combine_chunks()


def product_rows(snapshot_uri: str, pictures: pa.Table, palettes: pa.ChunkedArray | None, shard: int, shards: int) -> pa.Table:
    """A shard's row table where products have several pictures (PICTURES, by product and position): one row a product, by key.

    Its `image_uri` and its palette are those of the first usable picture: what an answer shows of a product whose main one is not.
    """
    product, position = pictures["product"].to_numpy(), pictures["position"].to_numpy()
    first = first_pictures(product, position)
    table = rows_of(snapshot_uri, product[first], shard, shards)
    other = np.flatnonzero(position[first] > 0)
    if len(other):
        further = table[IMAGES].take(pa.array(other)).to_pylist() if IMAGES in table.column_names else [[]] * len(other)
        uris = table["image_uri"].to_pylist()
        for row, images in zip(other, further, strict=True):
            place = int(position[first][row])
            if place > len(images or []):
                raise VitrineError(
                    f"product {table['product_id'][int(row)].as_py()!r} has a vector of its picture {place}, which the snapshot "
                    f"{snapshot_uri} does not name: the vectors belong to another one"
                )
            uris[row] = images[place - 1]
        table = table.set_column(table.column_names.index("image_uri"), "image_uri", pa.array(uris, pa.string()))
    return with_palettes(table, None if palettes is None else palettes.take(pa.array(first)))


def first_pictures(product: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Places (m,) of each product's first usable picture among pictures in order of product and position; a title (-1) only where
    there is no other."""
    begins = np.flatnonzero(np.concatenate([[True], product[1:] != product[:-1]])) if len(product) else np.zeros(0, np.int64)
    ends = np.append(begins[1:], len(product))
    return begins + ((position[begins] < 0) & (ends - begins > 1))


def with_palettes(rows: pa.Table, palettes: pa.ChunkedArray | None) -> pa.Table:
    """Segment rows with the palettes of their pictures, where known; both in the same order."""
    return rows if palettes is None else rows.append_column(PALETTE, palettes.combine_chunks())


def _existing_build(folder: Path, source: str) -> BuiltShard | None:
    """The shard already built in the folder, when it is complete and from the same source."""
    done = folder / BUILT
    if not done.is_file():
        return None
    try:
        kept = BuiltShard.from_json(json.loads(done.read_text()) | {"uri": str(folder)})
        for ref in kept.files:
            verify(folder / ref.path, ref)
    except (ContractError, RecordError):
        return None
    return kept if kept.source == source else None


def _index_files(template: Template, rows: int) -> FaissShard | ScannShard:
    """What takes the vectors of a shard whose index is a file of the version."""
    return ScannShard(rows, template.dim) if buildable(template.family).engine == SCANN else FaissShard(template)


def check_keys(keys: np.ndarray, pictures: pa.Table | None, shard: int, shards: int) -> None:
    """Raises VitrineError for vectors of a shard that are out of order, there twice, or of another shard's products."""
    rising = keys[1:] > keys[:-1]
    if pictures is not None:
        position = pictures["position"].to_numpy()
        rising |= (keys[1:] == keys[:-1]) & (position[1:] > position[:-1])
    if not rising.all():
        again = keys[1:][~rising][0]
        raise VitrineError(
            f"shard {shard}: key {again} occurs twice or out of order in the vectors; run the embedding step again"
        )
    if (shard_of(keys, shards) != shard).any():
        raise VitrineError(f"shard {shard}: it holds vectors of other shards; they were written for another number of shards")
