"""Incremental versions: one delta and one tombstone segment per touched shard; all other segments are referenced.

A tombstone hides its keys in all earlier segments of the shard, so an upsert is a tombstone for the old row and a new row in the
delta, with all pictures that the product has now. What is new altogether needs none: a mask on the rows of a base costs every search
up to half of its time. Nothing of the base is read: the cost grows with the change, not with the catalogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.contract.files import FileRef, describe
from serving.contract.keys import shard_of
from serving.contract.manifest import IndexManifest, Segment, SegmentPictures
from serving.contract.segments import PICTURES, ROW_COLUMNS, read_index, read_pictures, read_rows, write_index, write_rows
from serving.index.faiss_engine import FaissEngine
from tasks.errors import VitrineError
from tasks.index.quantizer_codes import code_adder
from tasks.index.template import Template, empty_index
from tasks.index.vectors import check_vectors

Locate = Callable[[FileRef], Path]

CODED_ROWS = 5_000
"""More rows of flat deltas than this become a segment with the base's lists and codes: comparing them one by one costs half a
millisecond at 512 dimensions and grows, coded they cost a fifth of a search however many they are (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Changes:
    """Upserts as rows (ROW_COLUMNS and extra ones) with unit vectors (n, d) float32, and keys (m,) int64 to delete.

    `new` are keys (u,) int64 of upserts that no earlier segment shows: nothing of theirs has to be hidden. `pictures` (PICTURES) say
    which picture of which product each vector is of, and are all the pictures that a changed product has now; None: vector i is the
    one of row i.
    """

    rows: pa.Table
    vectors: np.ndarray
    deletes: np.ndarray
    new: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pictures: pa.Table | None = None


@dataclass(frozen=True)
class DeltaLimits:
    """Limits of the drift from the base before a rebuild is due (`make bench-delta` draws the curve)."""

    delta_share: float = 0.1
    flat_rows: int = 50_000
    """Rows of flat deltas, all of which every query is compared with: 5 ms for so many of 512 dimensions."""
    tombstone_share: float = 0.2
    segments_per_shard: int = 48


def add_delta(manifest: IndexManifest, changes: Changes, folder: Path, run_id: str = "", prefix: str = "") -> tuple[Segment, ...]:
    """Segments of the next version: the manifest's own and, per touched shard, a flat delta and its tombstones.

    Files are written to `folder`, as artifacts of `run_id` below `prefix`. Raises VitrineError for changes that contradict
    themselves.
    """
    keys = changes.rows["key"].to_numpy() if len(changes.rows) else np.zeros(0, np.int64)
    _check(manifest, changes, keys)
    added: list[Segment] = []
    sequence = 1 + max((s.sequence for s in manifest.segments), default=0)
    upserts = _Rows(changes.rows, changes.vectors, changes.pictures)
    for shard in np.unique(shard_of(np.concatenate([keys, changes.deletes]), manifest.shards)):
        mine = np.flatnonzero(shard_of(keys, manifest.shards) == shard)
        gone = changes.deletes[shard_of(changes.deletes, manifest.shards) == shard]
        piece = _SegmentWriter(int(shard), sequence, folder, run_id, prefix)
        if len(mine):
            added.append(piece.delta(upserts.take(mine)))
        hidden = np.union1d(np.setdiff1d(keys[mine], changes.new), gone)
        if len(hidden):
            added.append(piece.tombstones(hidden))
    return (*manifest.segments, *added)


def delta_rows(segments: Sequence[Segment]) -> int:
    """Vectors in deltas."""
    return sum(s.vectors for s in segments if s.kind == "delta")


def flat_rows(segments: Sequence[Segment]) -> int:
    """Vectors in flat deltas, which every query scans."""
    return sum(s.vectors for s in segments if s.kind == "delta" and s.family == "flat")


def code_deltas(
    manifest: IndexManifest, locate: Locate, template: Template, folder: Path, run_id: str = "", prefix: str = ""
) -> tuple[Segment, ...]:
    """The same content with each shard's flat deltas replaced by one with the lists and codes of the base's `template`.

    Nothing but flat deltas is read and written again, each row once: deltas that are coded already stay as they are. Tombstones
    do too, as each hides what came before it. A template without lists changes nothing.
    """
    if not template.fit:
        return manifest.segments
    segments: list[Segment] = []
    for shard in range(manifest.shards):
        mine = [s for s in manifest.segments if s.shard == shard]
        flat = sorted((s for s in mine if s.kind == "delta" and s.family == "flat"), key=lambda s: s.sequence)
        segments += [s for s in mine if s not in flat]
        if flat:
            live = _live(manifest, flat, [s for s in mine if s.kind == "tombstones"], locate)
            if len(live.table):
                segments.append(_SegmentWriter(shard, flat[-1].sequence, folder, run_id, prefix).delta(live, template))
    return tuple(segments)


def merge_deltas(
    manifest: IndexManifest, locate: Locate, folder: Path, run_id: str = "", prefix: str = "", template: Template | None = None
) -> tuple[Segment, ...]:
    """The same content with at most one delta and one tombstone segment per shard; bases are unchanged.

    Reads and writes deltas and tombstones only. With a `template` that has lists the merged delta is coded; without one it is
    flat, and what was flat is merged without any loss.
    """
    merged: list[Segment] = []
    for shard in range(manifest.shards):
        mine = [s for s in manifest.segments if s.shard == shard]
        deltas = sorted((s for s in mine if s.kind == "delta"), key=lambda s: s.sequence)
        stones = [s for s in mine if s.kind == "tombstones"]
        merged += [s for s in mine if s.kind == "base"]
        if len(deltas) <= 1 and len(stones) <= 1:
            merged += [*deltas, *stones]
            continue
        piece = _SegmentWriter(shard, max(s.sequence for s in (*deltas, *stones)), folder, run_id, prefix)
        if deltas:
            live = _live(manifest, deltas, stones, locate)
            if len(live.table):
                merged.append(piece.delta(live, template))
        if stones:
            merged.append(piece.tombstones(np.unique(np.concatenate([_keys(s, locate) for s in stones]))))
    return tuple(merged)


def _live(manifest: IndexManifest, deltas: list[Segment], stones: list[Segment], locate: Locate) -> "_Rows":
    """What of a shard's deltas no later tombstone hides, in order of key."""
    hidden = [(s.sequence, _keys(s, locate)) for s in stones]
    parts = []
    for delta in deltas:
        table = read_rows(locate(delta.table), rows=delta.rows)
        later = [keys for sequence, keys in hidden if sequence > delta.sequence]
        live = ~np.isin(table["key"].to_numpy(), np.concatenate(later)) if later else np.ones(len(table), bool)
        engine = FaissEngine(read_index(locate(_index_of(delta)), manifest.encoder.dim, delta.vectors))
        pictures = None
        if delta.pictures is not None:
            pictures = read_pictures(locate(delta.pictures.table), delta.pictures.rows, PICTURES.names)
        parts.append(_Rows(table, engine.vectors(np.arange(engine.rows)), pictures).take(np.flatnonzero(live)))
    several = any(p.pictures is not None for p in parts)
    whole = _Rows(
        pa.concat_tables([p.table for p in parts], promote_options="default"),
        np.concatenate([p.vectors for p in parts]),
        pa.concat_tables([p.as_pictures() for p in parts]) if several else None,
    )
    return whole.take(np.arange(len(whole.table)))


def _keys(stone: Segment, locate: Locate) -> np.ndarray:
    return read_rows(locate(stone.table))["key"].to_numpy()


def _size(segment: Segment, kind: str) -> int:
    """What deltas and tombstones are a share of: deltas are vectors to search, tombstones products to hide."""
    return segment.vectors if kind == "delta" else segment.rows


def compaction_due(segments: Sequence[Segment], limits: DeltaLimits | None = None) -> str:
    """Why a rebuild is due, "" when it is not."""
    limits = limits or DeltaLimits()
    for kind, limit in (("delta", limits.delta_share), ("tombstones", limits.tombstone_share)):
        base, rows = (sum(_size(s, kind) for s in segments if s.kind == one) for one in ("base", kind))
        if rows > limit * max(base, 1):
            return f"{rows} rows in {kind} segments are {rows / max(base, 1):.1%} of the base (limit {limit:.0%})"
    flat = flat_rows(segments)
    if flat > limits.flat_rows:
        return f"every query scans {flat} rows of flat deltas one by one (limit {limits.flat_rows})"
    counts = np.bincount([s.shard for s in segments], minlength=1)
    if counts.max() > limits.segments_per_shard:
        return f"shard {counts.argmax()} has {counts.max()} segments (limit {limits.segments_per_shard}); merge its deltas"
    return ""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Products with their vectors: `table` has a row a product; `pictures` (PICTURES) describe the vectors, None: each is a row's."""

    table: pa.Table
    vectors: np.ndarray
    pictures: pa.Table | None = None

    def take(self, rows: np.ndarray) -> "_Rows":
        """These rows (n,) of the table in order of key, and their vectors, in order of key and position."""
        keys = self.table["key"].to_numpy()
        rows = rows[np.argsort(keys[rows])]
        table = self.table.take(pa.array(rows))
        if self.pictures is None:
            return _Rows(table, self.vectors[rows])
        product, position = self.pictures["product"].to_numpy(), self.pictures["position"].to_numpy()
        mine = np.flatnonzero(np.isin(product, keys[rows]))
        mine = mine[np.lexsort((position[mine], product[mine]))]
        alone = not position[mine].any()
        return _Rows(table, self.vectors[mine], None if alone else self.pictures.take(pa.array(mine)).combine_chunks())

    def as_pictures(self) -> pa.Table:
        """The pictures; where each row has one, main pictures whose content is not known any more."""
        if self.pictures is not None:
            return self.pictures
        count = len(self.table)
        columns = [self.table["key"], pa.array(np.zeros(count, np.int16)), pa.nulls(count, pa.binary(32))]
        return pa.table(columns, schema=PICTURES)


@dataclass(frozen=True)
class _SegmentWriter:
    """Writes the new segments of one shard."""

    shard: int
    sequence: int
    folder: Path
    run_id: str
    prefix: str

    def delta(self, changed: _Rows, template: Template | None = None) -> Segment:
        """A delta segment: flat, unless the template has lists."""
        rows = changed.table
        coded = template if template is not None and template.fit else None
        flat = Template("flat", "Flat", changed.vectors.shape[1], 1, len(rows))
        index = empty_index(coded or flat)
        with code_adder(index) as add:
            add(np.ascontiguousarray(changed.vectors, np.float32))
        carried = [n for n in rows.column_names if n not in ROW_COLUMNS]
        name = f"delta-{self.shard:05d}-{self.sequence:05d}"
        write_index(self.folder / f"{name}.faiss", index)
        write_rows(self.folder / f"{name}.parquet", rows.select([*ROW_COLUMNS, *carried]).combine_chunks())
        pictures = None
        if changed.pictures is not None:
            write_rows(self.folder / f"{name}.pictures.parquet", changed.pictures)
            pictures = SegmentPictures(rows=len(changed.pictures), table=self._ref(f"{name}.pictures.parquet"))
        return Segment(
            kind="delta", shard=self.shard, sequence=self.sequence, rows=len(rows), family=(coded or flat).family,
            index=self._ref(f"{name}.faiss"), table=self._ref(f"{name}.parquet"), pictures=pictures,
        )  # fmt: skip

    def tombstones(self, keys: np.ndarray) -> Segment:
        name = f"tombstones-{self.shard:05d}-{self.sequence:05d}.parquet"
        write_rows(self.folder / name, pa.table({"key": pa.array(keys, pa.int64())}))
        return Segment(kind="tombstones", shard=self.shard, sequence=self.sequence, rows=len(keys), table=self._ref(name))

    def _ref(self, name: str) -> FileRef:
        return describe(self.folder / name, f"{self.prefix}/{name}" if self.prefix else name, self.run_id)


def _check(manifest: IndexManifest, changes: Changes, keys: np.ndarray) -> None:
    owners = keys if changes.pictures is None else changes.pictures["product"].to_numpy()
    if len(owners) != len(changes.vectors) or not np.array_equal(np.unique(owners), np.unique(keys)):
        raise VitrineError(
            f"{len(keys)} changed rows with {len(changes.vectors)} vectors: every row needs exactly one, or one for each of its pictures"
        )
    unique, counts = np.unique(np.concatenate([keys, np.unique(changes.deletes)]), return_counts=True)
    if (counts > 1).any():
        raise VitrineError(f"key {unique[counts > 1][0]} is changed twice in one delta; pass only its last state")
    missing = [n for n in ROW_COLUMNS if n not in changes.rows.column_names]
    if len(keys) and missing:
        raise VitrineError(f"the changed rows lack the column {missing[0]}; they must have every column of a snapshot")
    if len(keys):
        check_vectors(changes.vectors, owners, manifest.encoder.dim)


def _index_of(segment: Segment) -> FileRef:
    if segment.index is None:
        raise VitrineError(f"the delta {segment.table.path} has no index file in its manifest")
    return segment.index
