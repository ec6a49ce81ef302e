"""Search over the segments of an index version: base and deltas, minus tombstones, under a filter. The code that gates measure.

Every row of every segment has one handle: its segment's offset plus its position in it. What is hidden or filtered out is never
returned, and while k matching rows are there, k are returned: an approximate search that comes up short looks wider, and at last
compares the matching rows of that segment exactly.
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
from serving.index.faiss_engine import TUNED, FaissEngine, is_flat, omp_threads, together
from serving.index.merge import Found, Source, gather, merge, nothing, padded
from serving.index.sharded_ivf import FaissShards, trained_as_one
from serving.ranking.features import Features

EXACT_SHARE = 0.03
"""At or below this share of matching rows they are compared exactly: as fast as the index there, and complete
(measured: 0.11-0.13 ms at <= 1 % of 100k x 128, docs/performance.md)."""
EXACT_ROWS = 30_000
"""Nor more rows than this: reading and comparing them takes a third of a microsecond each."""
WIDER = (8, 64)
"""How much wider a query looks whose lists or neighbours held too few rows."""
MOST_WIDENED = 16


@dataclass(eq=False)
class OpenSegment:
    """A base or delta. `engine`: None where other processes hold it; `alive` (rows,) bool: None while nothing is hidden."""

    engine: FaissEngine | None
    start: int
    rows: int
    alive: np.ndarray | None
    base: bool = True


class Part:
    """What is searched at once: an engine over the rows of one segment, or of all bases when they are shards of one template."""

    def __init__(self, engine: Engine, segments: list[OpenSegment]) -> None:
        self.engine, self.segments, self.rows = engine, segments, engine.rows
        hidden = any(s.alive is not None for s in segments)
        self.alive = Mask(_joined([_alive(s) for s in segments])) if hidden else None
        sizes = np.array([s.rows for s in segments])
        self.ends = np.cumsum(sizes)
        self.shifts = np.array([s.start for s in segments]) - (self.ends - sizes)

    def mask(self, allowed: np.ndarray | None) -> Mask | None:
        """Which of the part's rows are live and allowed; None: all."""
        if allowed is None:
            return self.alive
        mine = _joined([allowed[s.start : s.start + s.rows] for s in self.segments])
        return Mask(mine if self.alive is None else mine & self.alive.allowed)

    def handles(self, positions: np.ndarray) -> np.ndarray:
        """The handles of the engine's positions; -1 stays."""
        if len(self.segments) == 1 and not self.segments[0].start:
            return positions
        segment = np.searchsorted(self.ends, np.maximum(positions, 0), side="right")
        return np.where(positions < 0, -1, positions + self.shifts[segment])


class Searcher:
    """An index version opened for search. Immutable: several threads may search at once.

    `threads` bounds the OpenMP threads that one search may use: one, where many requests are answered side by side.
    """

    def __init__(self, manifest: IndexManifest, segments: list[OpenSegment], features: Features, threads: int = 1) -> None:
        self.manifest, self.segments, self.features, self.threads = manifest, segments, features, threads
        self.dim = manifest.encoder.dim
        self.params = dict(manifest.search)
        self.rows = features.rows
        hidden = [s.rows - int(s.alive.sum()) for s in segments if s.alive is not None]
        self.live_rows = self.rows - sum(hidden)
        self.parts = _parts(segments)

    @classmethod
    def open(
        cls, manifest: IndexManifest, locate: Callable[[FileRef], Path], threads: int = 1, shard: int | None = None
    ) -> "Searcher":
        """Opens every segment, or those of one shard; `locate` gives a file's verified local path.

        Raises ContractError for what does not fit.
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

    def search(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None) -> Found:
        """The k nearest live rows of unit queries xq (nq, d) float32, among `allowed` (rows,) bool when given.

        `params` replaces the manifest's search parameters (for tuning). Raises ValueError for queries, a k or a filter that do not
        fit.
        """
        xq = self._checked(xq, allowed, k)
        chosen = params or self.params
        masks = [part.mask(allowed) for part in self.parts]
        counts = [part.rows if mask is None else mask.count for part, mask in zip(self.parts, masks, strict=True)]

        def source(part: Part, mask: Mask | None, count: int) -> Source:
            return Source(lambda which, n: _search_part(part, mask, count, xq[which], n, chosen), count / sum(counts))

        with omp_threads(self.threads):
            there = [source(*one) for one in zip(self.parts, masks, counts, strict=True) if one[2]]
            return gather(there, len(xq), k) if there and k else nothing(len(xq), k)

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The same by comparing every matching row with the vectors the index stores."""
        xq = self._checked(xq, allowed, k)
        found = []
        for part in self.parts:
            mask = part.mask(allowed)
            found.append(_exact(part, xq, k, np.arange(part.rows) if mask is None else mask.positions))
        return merge(found, k) if found else nothing(len(xq), k)

    def vector(self, row: int) -> np.ndarray:
        """The stored vector (d,) float32 of a row."""
        segment = self._segment(row)
        assert segment.engine is not None
        return segment.engine.vectors(np.array([row - segment.start]))[0]

    def is_live(self, row: int) -> bool:
        """Whether a row is not hidden by a tombstone."""
        segment = self._segment(row)
        return segment.alive is None or bool(segment.alive[row - segment.start])

    def live(self) -> np.ndarray:
        """Which rows are live: (rows,) bool."""
        return _joined([_alive(s) for s in self.segments])

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
    for name in TUNED:
        value = manifest.search.get(name)
        if value is not None and (isinstance(value, str) or not value >= 0):
            raise ContractError(f"index {manifest.id}: the search parameter {name} is {value!r}, where a number is expected")


def _search_part(part: Part, mask: Mask | None, matching: int, xq: np.ndarray, k: int, params: dict[str, Scalar]) -> Found:
    """The k nearest rows of a part, as handles: fewer only when fewer than k match."""
    if mask is not None and matching <= max(min(EXACT_SHARE * part.rows, EXACT_ROWS), k):
        return _exact(part, xq, k, mask.positions)
    wanted = min(k, matching)
    # Where a filter keeps one row in f, the k nearest matching ones lie about f times as many lists away.
    spread = min(round(part.rows / matching), MOST_WIDENED)
    found = part.engine.search(xq, wanted, mask, params, spread)
    short = _short(found)
    for factor in WIDER:
        if not len(short):
            break
        again = part.engine.search(xq[short], wanted, mask, params, spread * factor)
        found.similarity[short], found.rows[short] = again.similarity, again.rows
        short = _short(found)
    result = padded(Found(found.similarity, part.handles(found.rows)), k)
    if len(short):
        every = np.arange(part.rows) if mask is None else mask.positions
        exact = _exact(part, xq[short], k, every)
        result.similarity[short], result.rows[short] = exact.similarity, exact.rows
    return result


def _short(found: Found) -> np.ndarray:
    """Which queries have fewer rows than were asked for: engines leave the last places empty."""
    return np.flatnonzero(found.rows[:, -1] < 0)


def _exact(part: Part, xq: np.ndarray, k: int, positions: np.ndarray) -> Found:
    found = part.engine.nearest(xq, positions, k)
    return padded(Found(found.similarity, part.handles(found.rows)), k)


def _parts(segments: list[OpenSegment]) -> list[Part]:
    """Bases and deltas with lists of one template are one part, flat deltas are another, every other segment is one of its own."""
    held = [(s, s.engine) for s in segments if s.engine is not None]
    flat = [(s, engine) for s, engine in held if not s.base and is_flat(engine)]
    coded = [(s, engine) for s, engine in held if s.base or not is_flat(engine)]
    bases = [(s, engine) for s, engine in coded if s.base]
    as_one = next((group for group in (coded, bases) if len(group) > 1 and trained_as_one([e for _, e in group])), [])
    parts: list[Part] = []
    if as_one:
        parts.append(Part(FaissShards([engine for _, engine in as_one]), [s for s, _ in as_one]))
    if flat:
        parts.append(Part(together([engine for _, engine in flat]), [s for s, _ in flat]))
    return parts + [Part(engine, [s]) for s, engine in coded if (s, engine) not in as_one]


def features_of(manifest: IndexManifest, tables: list[pa.Table]) -> Features:
    """The columns of all segments' tables, one after the other. Raises ContractError when they do not fit together."""
    try:
        return Features(pa.concat_tables(tables, promote_options="default"))
    except pa.ArrowException as error:
        raise ContractError(f"index {manifest.id}: the tables of its segments do not fit together: {error}") from None


def ordered(segments: tuple[Segment, ...]) -> list[Segment]:
    """Segments in the order of their rows' handles: shard by shard."""
    return sorted(segments, key=lambda s: (s.shard, s.sequence, s.kind))


def alive_rows(
    segment: Segment, keys: np.ndarray, segments: tuple[Segment, ...], locate: Callable[[FileRef], Path]
) -> np.ndarray | None:
    """Which rows no later tombstone hides; None where none is hidden: a mask costs every search."""
    later = [s for s in segments if s.kind == "tombstones" and s.shard == segment.shard and s.sequence > segment.sequence]
    if not later:
        return None
    hidden = np.concatenate([read_rows(locate(s.table))["key"].to_numpy() for s in later])
    alive = ~np.isin(keys, hidden)
    return None if alive.all() else alive


def _alive(segment: OpenSegment) -> np.ndarray:
    return np.ones(segment.rows, bool) if segment.alive is None else segment.alive


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Masks one after the other, without a copy where there is one."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, bool)
