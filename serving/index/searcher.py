"""Filtered search over the segments of an index version: bases and deltas, minus tombstones. The code that gates measure.

Every row has one handle: its segment's offset plus its position in it. Hidden and filtered rows are never returned, and k rows are
returned wherever k match: an approximate search that finds fewer is widened, and at last the matching rows of that group are
searched exactly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.contract.files import ContractError, FileRef
from serving.contract.manifest import IndexManifest, Scalar, Segment
from serving.contract.segments import ROW_COLUMNS, read_index, read_rows
from serving.index.engine import Engine, Mask
from serving.index.faiss_engine import SEARCH_PARAMETERS, FaissEngine, concat_flat, is_flat, omp_threads
from serving.index.merge import Neighbors, Partition, empty, gather, merge, pad
from serving.index.sharded_ivf import ShardedIvf, share_training
from serving.ranking.features import Features

EXACT_SHARE = 0.03
"""At or below this share of matching rows the search is exact: as fast as the index there, and complete
(measured: 0.11-0.13 ms at <= 1 % of 100k x 128, docs/benchmarks.md)."""
EXACT_ROWS = 30_000
"""Most rows of an exact search that a filter leads to: reading and comparing takes a third of a microsecond a row."""
WIDENING = (8, 64)
"""Factors of effort for queries that found fewer than k rows."""
MAX_SPREAD = 16


@dataclass(eq=False)
class OpenSegment:
    """An opened base or delta. `engine`: None where shard processes hold it; `alive` (rows,) bool: None where no row is hidden."""

    engine: FaissEngine | None
    start: int
    rows: int
    alive: np.ndarray | None
    base: bool = True


class SegmentGroup:
    """Segments searched as one: an engine over one segment, or over all that share one template's training."""

    def __init__(self, engine: Engine, segments: list[OpenSegment]) -> None:
        self.engine, self.segments, self.rows = engine, segments, engine.rows
        hidden = any(s.alive is not None for s in segments)
        self.alive = Mask(_concatenated([_alive(s) for s in segments])) if hidden else None
        sizes = np.array([s.rows for s in segments])
        self.ends = np.cumsum(sizes)
        self.shifts = np.array([s.start for s in segments]) - (self.ends - sizes)

    def mask(self, allowed: np.ndarray | None) -> Mask | None:
        """The group's rows that are live and allowed; None: all."""
        if allowed is None:
            return self.alive
        mine = _concatenated([allowed[s.start : s.start + s.rows] for s in self.segments])
        return Mask(mine if self.alive is None else mine & self.alive.allowed)

    def handles(self, positions: np.ndarray) -> np.ndarray:
        """Converts the engine's positions to handles; -1 stays."""
        if len(self.segments) == 1 and not self.segments[0].start:
            return positions
        segment = np.searchsorted(self.ends, np.maximum(positions, 0), side="right")
        return np.where(positions < 0, -1, positions + self.shifts[segment])


class Searcher:
    """An index version opened for search. Immutable and thread-safe.

    `threads`: OpenMP threads per search; 1 where many requests are answered in parallel.
    """

    def __init__(self, manifest: IndexManifest, segments: list[OpenSegment], features: Features, threads: int = 1) -> None:
        self.manifest, self.segments, self.features, self.threads = manifest, segments, features, threads
        self.dim = manifest.encoder.dim
        self.params = dict(manifest.search)
        self.rows = features.rows
        hidden = [s.rows - int(s.alive.sum()) for s in segments if s.alive is not None]
        self.live_rows = self.rows - sum(hidden)
        self.groups = _group_segments(segments)

    @classmethod
    def open(
        cls, manifest: IndexManifest, locate: Callable[[FileRef], Path], threads: int = 1, shard: int | None = None
    ) -> "Searcher":
        """Opens every segment, or those of one shard; `locate` gives a file's verified local path.

        Raises ContractError naming the file or field that does not fit.
        """
        wanted = range(manifest.shards) if shard is None else [shard]
        _check_manifest(manifest, wanted)
        opened: list[OpenSegment] = []
        tables: list[pa.Table] = []
        start = 0
        for segment in ordered(manifest.segments):
            if segment.index is None or segment.shard not in wanted:
                continue
            table = read_rows(locate(segment.table), ROW_COLUMNS, segment.rows)
            engine = FaissEngine(read_index(locate(segment.index), manifest.encoder.dim, segment.rows))
            alive = alive_rows(segment, table["key"].to_numpy(), manifest.segments, locate)
            opened.append(OpenSegment(engine, start, len(table), alive, segment.kind == "base"))
            tables.append(table)
            start += len(table)
        return cls(manifest, opened, features_of(manifest, tables), threads)

    def search(
        self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None
    ) -> Neighbors:
        """k nearest live rows of unit queries xq (nq, d) float32, among `allowed` (rows,) bool when given.

        `params` replaces the manifest's search parameters (for tuning). Raises ValueError for queries, k or a filter of wrong shape,
        dtype or value.
        """
        xq = self._checked(xq, allowed, k)
        chosen = params or self.params
        masks = [group.mask(allowed) for group in self.groups]
        counts = [group.rows if mask is None else mask.count for group, mask in zip(self.groups, masks, strict=True)]

        def partition(group: SegmentGroup, mask: Mask | None, count: int) -> Partition:
            return Partition(lambda which, n: _search_group(group, mask, count, xq[which], n, chosen), count / sum(counts))

        with omp_threads(self.threads):
            there = [partition(*one) for one in zip(self.groups, masks, counts, strict=True) if one[2]]
            return gather(there, len(xq), k) if there and k else empty(len(xq), k)

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Neighbors:
        """Exact k nearest live rows: compares every matching row's stored vector. Arguments as in `search`."""
        xq = self._checked(xq, allowed, k)
        found = []
        for group in self.groups:
            mask = group.mask(allowed)
            found.append(_exact(group, xq, k, np.arange(group.rows) if mask is None else mask.positions))
        return merge(found, k) if found else empty(len(xq), k)

    def vector(self, row: int) -> np.ndarray:
        """The stored vector (d,) float32 of a row."""
        segment = self._segment(row)
        assert segment.engine is not None
        return segment.engine.vectors(np.array([row - segment.start]))[0]

    def is_live(self, row: int) -> bool:
        """Whether no tombstone hides this row."""
        segment = self._segment(row)
        return segment.alive is None or bool(segment.alive[row - segment.start])

    def live(self) -> np.ndarray:
        """Which rows are live: (rows,) bool."""
        return _concatenated([_alive(s) for s in self.segments])

    def _segment(self, row: int) -> OpenSegment:
        return next(s for s in self.segments if s.start <= row < s.start + s.rows)

    def _checked(self, xq: np.ndarray, allowed: np.ndarray | None, k: int = 0) -> np.ndarray:
        if xq.ndim != 2 or xq.shape[1] != self.dim:
            raise ValueError(f"queries of shape {xq.shape}, where (nq, {self.dim}) is expected")
        if not np.isfinite(xq).all():
            raise ValueError("a query vector holds NaN or infinity")
        if k < 0:
            raise ValueError(f"{k} nearest rows are asked for, where 0 or more are expected")
        if allowed is not None and (allowed.shape != (self.rows,) or allowed.dtype != bool):
            raise ValueError(f"a filter of shape {allowed.shape}, {allowed.dtype}, where ({self.rows},) bool is expected")
        return np.ascontiguousarray(xq, np.float32)


def _check_manifest(manifest: IndexManifest, wanted: Iterable[int]) -> None:
    """Raises ContractError when a wanted shard has no base, a segment no shard or no index, or a search parameter no number."""
    missing = sorted(set(wanted) - {s.shard for s in manifest.segments if s.kind == "base" and s.index is not None})
    if missing:
        raise ContractError(f"index {manifest.id}: shard {missing[0]} of {manifest.shards} has no base segment in the manifest")
    for segment in manifest.segments:
        if not 0 <= segment.shard < manifest.shards:
            raise ContractError(
                f"{segment.table.path}: it is of shard {segment.shard}, and the index has {manifest.shards} shards"
            )
        if (segment.index is None) != (segment.kind == "tombstones"):
            there = "no index file" if segment.index is None else "an index file"
            raise ContractError(f"{segment.table.path}: a segment of kind {segment.kind} with {there}")
    for name in SEARCH_PARAMETERS:
        value = manifest.search.get(name)
        if value is not None and (isinstance(value, str) or not value >= 0):
            raise ContractError(f"index {manifest.id}: the search parameter {name} is {value!r}, where a number is expected")


def _search_group(
    group: SegmentGroup, mask: Mask | None, matching: int, xq: np.ndarray, k: int, params: dict[str, Scalar]
) -> Neighbors:
    """k nearest rows of a group, as handles; fewer only where fewer than k match."""
    if mask is not None and matching <= max(min(EXACT_SHARE * group.rows, EXACT_ROWS), k):
        return _exact(group, xq, k, mask.positions)
    wanted = min(k, matching)
    # Where a filter keeps one row in f, the k nearest matching ones lie about f times as many lists away.
    spread = min(round(group.rows / matching), MAX_SPREAD)
    found = group.engine.search(xq, wanted, mask, params, spread)
    short = _incomplete(found)
    for factor in WIDENING:
        if not len(short):
            break
        again = group.engine.search(xq[short], wanted, mask, params, spread * factor)
        found.similarity[short], found.rows[short] = again.similarity, again.rows
        short = _incomplete(found)
    result = pad(Neighbors(found.similarity, group.handles(found.rows)), k)
    if len(short):
        every = np.arange(group.rows) if mask is None else mask.positions
        exact = _exact(group, xq[short], k, every)
        result.similarity[short], result.rows[short] = exact.similarity, exact.rows
    return result


def _incomplete(found: Neighbors) -> np.ndarray:
    """Queries (n,) int that found fewer than k rows: their last column is -1."""
    return np.flatnonzero(found.rows[:, -1] < 0)


def _exact(group: SegmentGroup, xq: np.ndarray, k: int, positions: np.ndarray) -> Neighbors:
    found = group.engine.nearest(xq, positions, k)
    return pad(Neighbors(found.similarity, group.handles(found.rows)), k)


def _group_segments(segments: list[OpenSegment]) -> list[SegmentGroup]:
    """Groups bases and deltas whose lists share one template, groups flat deltas, and leaves every other segment on its own."""
    held = [(s, s.engine) for s in segments if s.engine is not None]
    flat = [(s, engine) for s, engine in held if not s.base and is_flat(engine)]
    coded = [(s, engine) for s, engine in held if s.base or not is_flat(engine)]
    bases = [(s, engine) for s, engine in coded if s.base]
    same_training = next((group for group in (coded, bases) if len(group) > 1 and share_training([e for _, e in group])), [])
    groups: list[SegmentGroup] = []
    if same_training:
        groups.append(SegmentGroup(ShardedIvf([engine for _, engine in same_training]), [s for s, _ in same_training]))
    if flat:
        groups.append(SegmentGroup(concat_flat([engine for _, engine in flat]), [s for s, _ in flat]))
    return groups + [SegmentGroup(engine, [s]) for s, engine in coded if (s, engine) not in same_training]


def features_of(manifest: IndexManifest, tables: list[pa.Table]) -> Features:
    """Features over the concatenated row tables of all segments. Raises ContractError where their schemas do not fit."""
    try:
        return Features(pa.concat_tables(tables, promote_options="default"))
    except pa.ArrowException as error:
        raise ContractError(f"index {manifest.id}: the tables of its segments do not fit together: {error}") from None


def ordered(segments: tuple[Segment, ...]) -> list[Segment]:
    """Segments in the order of their handles: by shard, then by sequence."""
    return sorted(segments, key=lambda s: (s.shard, s.sequence, s.kind))


def alive_rows(
    segment: Segment, keys: np.ndarray, segments: tuple[Segment, ...], locate: Callable[[FileRef], Path]
) -> np.ndarray | None:
    """Rows (n,) bool that no later tombstone hides; None where none is hidden, since a mask slows every search."""
    later = [s for s in segments if s.kind == "tombstones" and s.shard == segment.shard and s.sequence > segment.sequence]
    if not later:
        return None
    hidden = np.concatenate([read_rows(locate(s.table))["key"].to_numpy() for s in later])
    alive = ~np.isin(keys, hidden)
    return None if alive.all() else alive


def _alive(segment: OpenSegment) -> np.ndarray:
    return np.ones(segment.rows, bool) if segment.alive is None else segment.alive


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates masks; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, bool)
