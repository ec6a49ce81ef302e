"""Filtered search over the segments of an index version: bases and deltas, minus tombstones. The code that gates measure.

Every row of a segment's table, that is every product, has one handle: its segment's offset plus its place in it. Hidden and filtered
rows are never returned, and k rows are returned wherever k match: an approximate search that finds fewer is widened, and at last the
matching rows of that group are searched exactly. Where products have several pictures, what an engine searches are these
(serving/index/segment_group.py).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.contract.files import ContractError, FileRef
from serving.contract.manifest import IndexManifest, Scalar, Segment
from serving.contract.segments import ROW_COLUMNS, read_index, read_pictures, read_rows
from serving.index.collection import NOWHERE, Endpoint, measuring
from serving.index.engine import Vectors
from serving.index.faiss_engine import SEARCH_PARAMETERS, FaissEngine, concat_flat, is_flat, omp_threads
from serving.index.merge import Neighbors, Partition, empty, gather, merge
from serving.index.pictures import Pictures
from serving.index.remote_engine import RemoteEngine, connect
from serving.index.scann_engine import SUFFIX as SCANN
from serving.index.scann_engine import ScannEngine, open_scann
from serving.index.segment_group import OpenSegment, SegmentGroup, Selection, concatenated
from serving.index.sharded_ivf import ShardedIvf, share_training
from serving.ranking.features import Features


class Searcher:
    """An index version opened for search. Immutable and thread-safe.

    `rows` counts products in segments, `vectors` their pictures; `live_rows` and `live_vectors` those that no tombstone hides, and
    `live_titles` how many of these vectors are of a title, as the product has no picture.
    `threads`: OpenMP threads per search; 1 where many requests are answered in parallel. `remote` holds the bases of a version whose
    manifest names an engine; deltas and tombstones are segments as ever.
    """

    def __init__(
        self, manifest: IndexManifest, segments: list[OpenSegment], features: Features, threads: int = 1,
        remote: RemoteEngine | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.segments, self.features, self.threads = manifest, segments, features, threads
        self.dim = manifest.encoder.dim
        self.params = dict(manifest.search)
        self.rows = features.rows
        hidden = [s.rows - int(s.alive.sum()) for s in segments if s.alive is not None]
        self.live_rows = self.rows - sum(hidden)
        self.vectors = sum(s.vectors for s in segments)
        self.live_vectors = sum(s.live_vectors for s in segments)
        self.live_titles = sum(s.live_titles for s in segments if s.has_titles)
        self.remote = remote
        self.groups = _group_segments(segments, remote)

    @classmethod
    def open(
        cls, manifest: IndexManifest, locate: Callable[[FileRef], Path], threads: int = 1, shard: int | None = None,
        endpoint: Endpoint = NOWHERE,
    ) -> "Searcher":  # fmt: skip
        """Opens every segment, or those of one shard; `locate` gives a file's verified local path, `endpoint` is that of the engine
        that holds the bases, where the manifest names one.

        Raises ContractError naming the file or field that does not fit; EngineUnavailable.
        """
        wanted = range(manifest.shards) if shard is None else [shard]
        _check_manifest(manifest, wanted)
        remote = connect(manifest.engine, endpoint, manifest.encoder.dim) if manifest.engine is not None else None
        opened: list[OpenSegment] = []
        tables: list[pa.Table] = []
        start = 0
        for segment in ordered(manifest.segments):
            if not segment.holds_rows or segment.shard not in wanted:
                continue
            table = read_rows(locate(segment.table), ROW_COLUMNS, segment.rows)
            if segment.index is None:
                assert remote is not None
                engine: Vectors = remote.part(sum(s.vectors for s in opened if s.base))
            else:
                engine = open_index(segment.index, locate(segment.index), manifest.encoder.dim, segment.vectors)
            keys = table["key"].to_numpy()
            alive = alive_rows(segment, keys, manifest.segments, locate)
            pictures = open_pictures(segment, keys, locate)
            opened.append(OpenSegment(engine, start, len(table), alive, segment.kind == "base", pictures))
            tables.append(table)
            start += len(table)
        held = sum(s.vectors for s in opened if s.base)
        if remote is not None and held != remote.rows:
            raise ContractError(f"index {manifest.id}: its bases have {held} vectors, and its collection has {remote.rows}")
        return cls(manifest, opened, features_of(manifest, tables), threads, remote)

    def away(self) -> str:
        """Why the engine that holds the bases is not asked at the moment; "" where it is, or there is none."""
        return self.remote.breaker.away() if self.remote is not None else ""

    def search(
        self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None,
        words: bool = False,
    ) -> Neighbors:  # fmt: skip
        """k nearest live rows of unit queries xq (nq, d) float32, among `allowed` (rows,) bool when given.

        Products without a picture are found where the queries are `words`, and never by a photo.

        A product counts by its best picture; the result says which (`Neighbors.pictures`) where some have several. `params` replaces
        the manifest's search parameters (for tuning). Raises ValueError for queries, k or a filter of wrong shape, dtype or value.
        """
        xq = self._checked(xq, allowed, k)
        chosen = params or self.params
        selections = [group.select(allowed, words) for group in self.groups]
        products = sum(s.products for s in selections)

        def partition(group: SegmentGroup, selected: Selection) -> Partition:
            return Partition(lambda which, n: group.search(selected, xq[which], n, chosen), selected.products / products)

        with omp_threads(self.threads):
            there = [partition(*one) for one in zip(self.groups, selections, strict=True) if one[1].products]
            return gather(there, len(xq), k) if there and k else empty(len(xq), k)

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, words: bool = False) -> Neighbors:
        """Exact k nearest live rows: compares every matching row's stored vector. Arguments as in `search`."""
        xq = self._checked(xq, allowed, k)
        with measuring():
            found = [group.exact(group.select(allowed, words), xq, k) for group in self.groups]
        return merge(found, k) if found else empty(len(xq), k)

    def vector(self, row: int) -> np.ndarray:
        """The stored vector (d,) float32 of a row; where its product has several pictures, their mean, of unit length.

        As a query the mean finds what shoppers' photos of the product find better than its main picture does (docs/benchmarks.md).
        """
        segment = self._segment(row)
        assert segment.engine is not None
        stored = segment.engine.vectors(segment.positions_of(row))
        if len(stored) == 1:
            return stored[0]
        mean = stored.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def is_live(self, row: int) -> bool:
        """Whether no tombstone hides this row."""
        segment = self._segment(row)
        return segment.alive is None or bool(segment.alive[row - segment.start])

    def live(self) -> np.ndarray:
        """Which rows are live: (rows,) bool."""
        return concatenated([s.live() for s in self.segments])

    def depicted(self) -> np.ndarray:
        """Which rows are live and have a picture, so that a photo may find them: (rows,) bool."""
        return concatenated([s.depicted(s.live()) for s in self.segments])

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
    in_engine = manifest.engine is not None
    bases = {s.shard for s in manifest.segments if s.kind == "base" and (in_engine or s.index is not None)}
    missing = sorted(set(wanted) - bases)
    if missing:
        raise ContractError(f"index {manifest.id}: shard {missing[0]} of {manifest.shards} has no base segment in the manifest")
    for segment in manifest.segments:
        if not 0 <= segment.shard < manifest.shards:
            raise ContractError(
                f"{segment.table.path}: it is of shard {segment.shard}, and the index has {manifest.shards} shards"
            )
        if (segment.index is None) != (not segment.holds_rows or (in_engine and segment.kind == "base")):
            there = "no index file" if segment.index is None else "an index file"
            raise ContractError(f"{segment.table.path}: a segment of kind {segment.kind} with {there}")
    if manifest.engine is not None and len(list(wanted)) < manifest.shards:
        raise ContractError(
            f"index {manifest.id}: its vectors lie in {manifest.engine.name}, which is not asked by shard: serve it with VITRINE_ROLE=all"
        )
    for name in SEARCH_PARAMETERS:
        value = manifest.search.get(name)
        if value is not None and (isinstance(value, str) or not value >= 0):
            raise ContractError(f"index {manifest.id}: the search parameter {name} is {value!r}, where a number is expected")


def _group_segments(segments: list[OpenSegment], remote: RemoteEngine | None) -> list[SegmentGroup]:
    """Groups bases and deltas whose lists share one template, groups flat deltas, and leaves every other segment on its own.

    The bases that `remote` holds are one group.
    """
    held = [(s, s.engine) for s in segments if isinstance(s.engine, FaissEngine)]
    flat = [(s, engine) for s, engine in held if not s.base and is_flat(engine)]
    coded = [(s, engine) for s, engine in held if s.base or not is_flat(engine)]
    bases = [(s, engine) for s, engine in coded if s.base]
    same_training = next((group for group in (coded, bases) if len(group) > 1 and share_training([e for _, e in group])), [])
    groups = [SegmentGroup(remote, [s for s in segments if s.base])] if remote is not None and remote.rows else []
    groups += [SegmentGroup(s.engine, [s]) for s in segments if isinstance(s.engine, ScannEngine)]
    if same_training:
        groups.append(SegmentGroup(ShardedIvf([engine for _, engine in same_training]), [s for s, _ in same_training]))
    if flat:
        groups.append(SegmentGroup(concat_flat([engine for _, engine in flat]), [s for s, _ in flat]))
    return groups + [SegmentGroup(engine, [s]) for s, engine in coded if (s, engine) not in same_training]


def open_index(ref: FileRef, path: Path, dim: int, rows: int) -> FaissEngine | ScannEngine:
    """The engine over an index file: FAISS's or ScaNN's. Raises ContractError for a file that does not fit."""
    if ref.path.endswith(SCANN):
        return open_scann(path, dim, rows)
    return FaissEngine(read_index(path, dim, rows))


def open_pictures(segment: Segment, keys: np.ndarray, locate: Callable[[FileRef], Path]) -> Pictures | None:
    """The pictures of a segment whose table has these `keys` (rows,) int64; None where each product has one."""
    if segment.pictures is None:
        return None
    path = locate(segment.pictures.table)
    return Pictures.of(read_pictures(path, segment.pictures.rows), keys, path.name)


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
