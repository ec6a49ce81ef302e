"""The next index version on top of a parent: segments, counts and ledger after its changes. Reads only keys of the base."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.counts import Counts
from serving.contract.files import FileRef, describe
from serving.contract.manifest import FORMAT, IndexManifest, Segment
from serving.contract.provenance import EmbeddingCommit
from serving.contract.segments import POSITION, write_rows
from tasks.catalog.changes.ledger import DELETED, INDEXED, QUARANTINED, latest_changes
from tasks.index.build import product_rows, rows_of, with_palettes
from tasks.index.delta import CODED_ROWS, Changes, add_delta, code_deltas, delta_rows, flat_rows, merge_deltas
from tasks.index.picture_counts import live_pictures
from tasks.index.template import Template
from tasks.index.vectors import shard_batches, shard_palettes, shard_pictures

MERGE_SEGMENTS = 24
"""A shard with more segments has its deltas merged: every search asks each of them."""
MERGE_LEDGERS = 16
LEDGER = "changes.parquet"


@dataclass(frozen=True)
class ArtifactLocation:
    """Where a version's files are written (`folder`) and their artifact names: `run_id`, below `prefix`."""

    folder: Path
    run_id: str
    prefix: str


@dataclass(frozen=True)
class EmbeddedRows:
    """Upserts with vectors: `rows` as a segment's table, `vectors` (n, d) float32 of unit length, in the rows' order, or in that of
    `pictures` (PICTURES) where products have several."""

    rows: pa.Table
    vectors: np.ndarray
    pictures: pa.Table | None = None

    @property
    def titles(self) -> int:
        """The number of vectors that are of titles."""
        return 0 if self.pictures is None else int((self.pictures[POSITION].to_numpy() < 0).sum())

    @property
    def keys(self) -> np.ndarray:
        return self.rows["key"].to_numpy() if len(self.rows) else np.zeros(0, np.int64)


def embedded_rows(vectors_uri: str, snapshot_uri: str, shards: int, dim: int) -> EmbeddedRows:
    """What a run embedded: the products of its snapshot with usable pictures, and their vectors."""
    blocks = [b for s in range(shards) for b in shard_batches(vectors_uri, s)]
    if not blocks:
        return EmbeddedRows(pa.table({"key": pa.array([], pa.int64())}), np.zeros((0, dim), np.float32))
    keys, vectors = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    pictures = shard_pictures(vectors_uri, range(shards))
    palettes = shard_palettes(vectors_uri, range(shards))
    if pictures is None:
        return EmbeddedRows(with_palettes(rows_of(snapshot_uri, keys, 0, 1), palettes), vectors)
    return EmbeddedRows(product_rows(snapshot_uri, pictures, palettes, 0, 1), vectors, pictures)


def mark_membership(changed: pa.Table, products: pa.Table, base_keys: pa.Array) -> pa.Table:
    """Sets in_snapshot and in_base of ledger rows by the base's snapshot (`products`) and segments (`base_keys`)."""
    for name, keys in (("in_snapshot", products["key"].combine_chunks()), ("in_base", base_keys)):
        changed = changed.set_column(changed.column_names.index(name), name, pc.is_in(changed["key"], keys))
    return changed


def next_version(
    parent: IndexManifest,
    held: pa.Table,
    changed: pa.Table,
    embedded: EmbeddedRows,
    place: ArtifactLocation,
    locate: Callable[[FileRef], Path],
    template_of: Callable[[], Template | None] = lambda: None,
    commits: tuple[EmbeddingCommit, ...] = (),
    unusable_pictures: int | None = None,
) -> tuple[IndexManifest, pa.Table]:
    """The manifest of the next version and its whole ledger; the caller adds id, time, golden answers and gates.

    `parent` may have got other weights and rules already. `held` is its ledger, `changed` what is new (from `mark_membership`).
    `template_of` gets the template of the base, where there are so many rows that they are to be coded. `commits` name what was
    embedded, `unusable_pictures` says how many more pictures of the changed products cannot be used than before (negative: fewer); None
    where neither they nor the parent have several a product. The same input gives the same bytes.
    """
    indexed = pc.is_in(changed["key"], pa.array(embedded.keys))
    state = pc.if_else(pc.equal(changed["kind"], "delete"), DELETED, pc.if_else(indexed, INDEXED, QUARANTINED))
    changed = changed.set_column(changed.column_names.index("state"), "state", state)
    # Only what may be in a segment needs hiding there: a tombstone costs every search a little.
    before = held.filter(pc.equal(held["state"], INDEXED))["key"].combine_chunks()
    there = pc.or_(changed["in_base"], pc.is_in(changed["key"], before))
    gone = changed.filter(pc.and_(pc.invert(indexed), there))["key"].to_numpy()
    new = changed.filter(pc.and_(indexed, pc.invert(there)))["key"].to_numpy()
    changes = Changes(embedded.rows, embedded.vectors, gone, new, embedded.pictures)
    segments = add_delta(parent, changes, place.folder, place.run_id, place.prefix)
    merges = np.bincount([s.shard for s in segments]).max() > MERGE_SEGMENTS
    to_code = delta_rows(segments) if merges else flat_rows(segments)  # a merge makes one of the coded and the flat
    template = template_of() if to_code > CODED_ROWS else None
    grown = parent.model_copy(update={"segments": segments})
    if merges:
        segments = merge_deltas(grown, locate, place.folder / "merged", place.run_id, f"{place.prefix}/merged", template)
    elif template is not None:
        segments = code_deltas(grown, locate, template, place.folder / "coded", place.run_id, f"{place.prefix}/coded")
    whole = latest_changes([held, changed])
    merged = len(parent.changes) >= MERGE_LEDGERS
    write_rows(place.folder / LEDGER, whole if merged else changed)
    mine = describe(place.folder / LEDGER, f"{place.prefix}/{LEDGER}", place.run_id)
    counted = counts(parent, segments, whole)
    old, bare = parent.counts, embedded.titles
    if unusable_pictures is not None or old.titles or bare:
        gone_pictures, gone_titles = live_pictures(parent, changed["key"].to_numpy(), locate)
        counted = counted.model_copy(update={"titles": (old.titles or 0) + bare - gone_titles or None})
        if unusable_pictures is not None:
            pictures = (old.servable if old.pictures is None else old.pictures) + len(embedded.vectors) - gone_pictures
            unusable = (old.quarantined_pictures or 0) + unusable_pictures
            counted = counted.model_copy(update={"pictures": pictures, "quarantined_pictures": unusable})
    update = {
        "segments": segments, "counts": counted, "gates": (),
        "changes": (mine,) if merged else (*parent.changes, mine), "content_key": _content_key(parent, changed),
        "format": FORMAT, "signature": "", "queries": None, "embeddings": (*parent.embeddings, *commits),
    }  # fmt: skip
    return parent.model_copy(update=update), whole


def counts(parent: IndexManifest, segments: tuple[Segment, ...], ledger: pa.Table) -> Counts:
    """Where every product of the catalogue is, according to the ledger; the gates compare it with the opened index.

    The rows that the snapshot set aside are the parent's: changes are of products.
    """
    snapshot_rows = parent.snapshot.rows

    def rows(mask: pa.Array) -> int:
        return int(pc.sum(mask).as_py() or 0)

    base = sum(s.rows for s in segments if s.kind == "base")
    gone = pc.equal(ledger["kind"], "delete")
    new = rows(pc.and_(pc.invert(gone), pc.invert(ledger["in_snapshot"])))
    unusable = snapshot_rows - base - rows(pc.and_(ledger["in_snapshot"], pc.invert(ledger["in_base"])))
    embedded = base - rows(ledger["in_base"]) + rows(pc.equal(ledger["state"], INDEXED))
    quarantined = unusable + rows(pc.equal(ledger["state"], QUARANTINED))
    return Counts(
        catalogue=snapshot_rows + new - rows(pc.and_(gone, ledger["in_snapshot"])), embedded=embedded,
        quarantined=quarantined, quarantined_pictures=quarantined, servable=embedded,
        quarantined_rows=parent.counts.quarantined_rows,
        indexed=sum(s.rows for s in segments if s.holds_rows),
        tombstoned=sum(s.rows for s in segments if s.kind == "tombstones"),
    )  # fmt: skip


def _content_key(parent: IndexManifest, changed: pa.Table) -> str:
    """Hash of the version's inputs; never equal to a base's, so that a rebuild is not skipped."""
    ranker = [json.dumps(parent.ranker, sort_keys=True)] if parent.ranker else []
    text = "\n".join([parent.content_key, *ranker, *changed["digest"].to_pylist()])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def quarantined_keys(products: np.ndarray, base_keys: np.ndarray, ledger: pa.Table) -> np.ndarray:
    """Keys (n,) int64 of products without a usable picture: unchanged ones of the base, and the ledger's.

    `products`: the keys of the base's snapshot.
    """
    touched = ledger["key"].to_numpy()
    before = products[~np.isin(products, base_keys) & ~np.isin(products, touched)]
    return np.concatenate([before, ledger.filter(pc.equal(ledger["state"], QUARANTINED))["key"].to_numpy()])
