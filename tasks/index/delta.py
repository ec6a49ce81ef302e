"""Hourly versions: what changed becomes one delta and one tombstone segment per touched shard; everything else is referenced.

A tombstone hides its keys in all earlier segments of the shard, so an upsert is a tombstone for the old row and a new row in the
delta. Nothing of the base is read: the cost grows with the change, not with the catalogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.contract.files import FileRef, describe
from serving.contract.keys import shard_of
from serving.contract.manifest import IndexManifest, Segment
from serving.contract.segments import ROW_COLUMNS, read_index, read_rows, write_index, write_rows
from serving.faiss_engine import FaissEngine
from tasks.errors import VitrineError
from tasks.index.build import Template, empty_index
from tasks.index.families import FLAT_MAX_ROWS
from tasks.index.vectors import check_vectors

Locate = Callable[[FileRef], Path]


@dataclass(frozen=True)
class Changes:
    """Upserts as rows (ROW_COLUMNS and carried ones) with their unit vectors (n, d) float32, and keys (m,) int64 to delete."""

    rows: pa.Table
    vectors: np.ndarray
    deletes: np.ndarray


@dataclass(frozen=True)
class DeltaLimits:
    """How far a version may drift from its base before it asks for a rebuild (docs/performance.md has the curve)."""

    delta_share: float = 0.1
    flat_rows: int = 50_000
    """Rows of flat deltas, all of which every query is compared with: 5 ms for so many of 512 dimensions."""
    tombstone_share: float = 0.2
    segments_per_shard: int = 48


def add_delta(
    manifest: IndexManifest, changes: Changes, folder: Path, run_id: str = "", prefix: str = "", template: Template | None = None
) -> tuple[Segment, ...]:
    """All segments of the next version: the manifest's own and, for every touched shard, a delta and a tombstone segment.

    Files are written to `folder`, as artifacts of `run_id` below `prefix`. A delta is flat, except where it exceeds
    FLAT_MAX_ROWS and a `template` is given. Raises VitrineError for changes that contradict themselves.
    """
    keys = changes.rows["key"].to_numpy() if len(changes.rows) else np.zeros(0, np.int64)
    _check(manifest, changes, keys)
    added: list[Segment] = []
    sequence = 1 + max((s.sequence for s in manifest.segments), default=0)
    for shard in np.unique(shard_of(np.concatenate([keys, changes.deletes]), manifest.shards)):
        mine = np.flatnonzero(shard_of(keys, manifest.shards) == shard)
        mine = mine[np.argsort(keys[mine])]
        gone = changes.deletes[shard_of(changes.deletes, manifest.shards) == shard]
        piece = _Piece(int(shard), sequence, folder, run_id, prefix)
        if len(mine):
            added.append(piece.delta(changes.rows.take(pa.array(mine)), changes.vectors[mine], template))
        added.append(piece.tombstones(np.union1d(keys[mine], gone)))
    return (*manifest.segments, *added)


def merge_deltas(
    manifest: IndexManifest, locate: Locate, folder: Path, run_id: str = "", prefix: str = ""
) -> tuple[Segment, ...]:
    """The same content with at most one delta and one tombstone segment per shard; bases stay as they are.

    Reads and writes deltas and tombstones only. Flat deltas are merged without any loss.
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
        hidden = [(s.sequence, read_rows(locate(s.table))["key"].to_numpy()) for s in stones]
        tables, vectors = [], []
        for delta in deltas:
            table = read_rows(locate(delta.table))
            later = [keys for sequence, keys in hidden if sequence > delta.sequence]
            live = ~np.isin(table["key"].to_numpy(), np.concatenate(later)) if later else np.ones(len(table), bool)
            engine = FaissEngine(read_index(locate(_index_of(delta)), manifest.encoder.dim, len(table)))
            tables.append(table.filter(pa.array(live)))
            vectors.append(engine.vectors(np.flatnonzero(live)))
        piece = _Piece(shard, max(s.sequence for s in (*deltas, *stones)), folder, run_id, prefix)
        rows = pa.concat_tables(tables, promote_options="default") if tables else None
        if rows is not None and len(rows):
            order = np.argsort(rows["key"].to_numpy())
            merged.append(piece.delta(rows.take(pa.array(order)), np.concatenate(vectors)[order], None))
        merged.append(piece.tombstones(np.unique(np.concatenate([keys for _, keys in hidden]))))
    return tuple(merged)


def compaction_due(segments: Sequence[Segment], limits: DeltaLimits | None = None) -> str:
    """Why the whole index should be rebuilt, "" while it need not."""
    limits = limits or DeltaLimits()
    base = sum(s.rows for s in segments if s.kind == "base")
    for kind, limit in (("delta", limits.delta_share), ("tombstones", limits.tombstone_share)):
        rows = sum(s.rows for s in segments if s.kind == kind)
        if rows > limit * max(base, 1):
            return f"{rows} rows in {kind} segments are {rows / max(base, 1):.1%} of the base (limit {limit:.0%})"
    flat = sum(s.rows for s in segments if s.kind == "delta" and s.family == "flat")
    if flat > limits.flat_rows:
        return f"every query is compared with {flat} rows of flat deltas (limit {limits.flat_rows})"
    counts = np.bincount([s.shard for s in segments], minlength=1)
    if counts.max() > limits.segments_per_shard:
        return f"shard {counts.argmax()} has {counts.max()} segments (limit {limits.segments_per_shard}); merge its deltas"
    return ""


@dataclass(frozen=True)
class _Piece:
    """Where the new segments of one shard go."""

    shard: int
    sequence: int
    folder: Path
    run_id: str
    prefix: str

    def delta(self, rows: pa.Table, vectors: np.ndarray, template: Template | None) -> Segment:
        coded = template if template is not None and len(rows) > FLAT_MAX_ROWS else None
        flat = Template("flat", "Flat", vectors.shape[1], 1, len(rows))
        index = empty_index(coded or flat)
        index.add(np.ascontiguousarray(vectors, np.float32))
        carried = [n for n in rows.column_names if n not in ROW_COLUMNS]
        name = f"delta-{self.shard:05d}-{self.sequence:05d}"
        write_index(self.folder / f"{name}.faiss", index)
        write_rows(self.folder / f"{name}.parquet", rows.select([*ROW_COLUMNS, *carried]).combine_chunks())
        return Segment(
            kind="delta", shard=self.shard, sequence=self.sequence, rows=len(rows), family=(coded or flat).family,
            index=self._ref(f"{name}.faiss"), table=self._ref(f"{name}.parquet"),
        )  # fmt: skip

    def tombstones(self, keys: np.ndarray) -> Segment:
        name = f"tombstones-{self.shard:05d}-{self.sequence:05d}.parquet"
        write_rows(self.folder / name, pa.table({"key": pa.array(keys, pa.int64())}))
        return Segment(kind="tombstones", shard=self.shard, sequence=self.sequence, rows=len(keys), table=self._ref(name))

    def _ref(self, name: str) -> FileRef:
        return describe(self.folder / name, f"{self.prefix}/{name}" if self.prefix else name, self.run_id)


def _check(manifest: IndexManifest, changes: Changes, keys: np.ndarray) -> None:
    if len(keys) != len(changes.vectors):
        raise VitrineError(f"{len(keys)} changed rows with {len(changes.vectors)} vectors: every row needs exactly one")
    unique, counts = np.unique(np.concatenate([keys, np.unique(changes.deletes)]), return_counts=True)
    if (counts > 1).any():
        raise VitrineError(f"key {unique[counts > 1][0]} is changed twice in one delta; pass only its last state")
    missing = [n for n in ROW_COLUMNS if n not in changes.rows.column_names]
    if len(keys) and missing:
        raise VitrineError(f"the changed rows lack the column {missing[0]}; they must have every column of a snapshot")
    if len(keys):
        check_vectors(changes.vectors, keys, manifest.encoder.dim)


def _index_of(segment: Segment) -> FileRef:
    if segment.index is None:
        raise VitrineError(f"the delta {segment.table.path} has no index file in its manifest")
    return segment.index
