"""Search over the segments of an index version: base and deltas, minus tombstones, under a filter. The code that gates measure.

Every row of every segment has one handle: its segment's offset plus its position in it. What is hidden or filtered out is never
returned, and while k matching rows are there, k are returned: an approximate search that comes up short looks wider, and at last
compares the matching rows of that segment exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from serving.contract.files import ContractError, FileRef
from serving.contract.manifest import IndexManifest, Scalar, Segment
from serving.contract.segments import read_index, read_rows
from serving.features import Features

EXACT_SHARE = 0.03
"""At or below this share of matching rows they are compared exactly: as fast as the index there, and complete
(measured: 0.11-0.13 ms at <= 1 % of 100k x 128, docs/performance.md)."""
EXACT_BLOCK = 65_536
EFFORT = ("nprobe", "ef")
WIDER = (8, 64)
"""How much wider a query looks whose lists or neighbours held too few rows."""
MOST_WIDENED = 16


@dataclass(frozen=True)
class Found:
    """The nearest rows of each query, best first: `similarity` (nq, k) float32, `rows` (nq, k) int64 (-1: none).

    `missing`: how many shards a gateway had no answer from; what they hold is not among the rows.
    """

    similarity: np.ndarray
    rows: np.ndarray
    missing: int = 0


@dataclass
class OpenSegment:
    """A base or delta in memory. `alive` (rows,) bool is None while nothing in it is hidden."""

    index: Any
    start: int
    rows: int
    alive: np.ndarray | None


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

    @classmethod
    def open(
        cls, manifest: IndexManifest, locate: Callable[[FileRef], Path], threads: int = 1, shard: int | None = None
    ) -> "Searcher":
        """Opens every segment, or those of one shard; `locate` gives a file's verified local path.

        Raises ContractError for what does not fit.
        """
        wanted = range(manifest.shards) if shard is None else [shard]
        missing = sorted(set(wanted) - {s.shard for s in manifest.segments if s.kind == "base"})
        if missing:
            raise ContractError(
                f"index {manifest.id}: shard {missing[0]} of {manifest.shards} has no base segment in the manifest"
            )
        parts: list[OpenSegment] = []
        tables: list[pa.Table] = []
        start = 0
        for segment in ordered(manifest.segments):
            if segment.index is None or segment.shard not in wanted:
                continue
            table = read_rows(locate(segment.table))
            index = read_index(locate(segment.index), manifest.encoder.dim, len(table))
            prepare(index)
            alive = alive_rows(segment, table["key"].to_numpy(), manifest.segments, locate)
            parts.append(OpenSegment(index, start, len(table), alive))
            tables.append(table)
            start += len(table)
        return cls(manifest, parts, Features(pa.concat_tables(tables, promote_options="default")), threads)

    def search(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None) -> Found:
        """The k nearest live rows of unit queries xq (nq, d) float32, among `allowed` (rows,) bool when given.

        `params` replaces the manifest's search parameters (for tuning). Raises ValueError for queries or a filter that do not fit.
        """
        xq = self._checked(xq, allowed)
        with omp_threads(self.threads):
            found = [self._search_segment(s, xq, k, allowed, params or self.params) for s in self.segments]
        return merge(found, k) if found else _nothing(len(xq), k)

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The same by comparing every matching row with the vectors the index stores."""
        xq = self._checked(xq, allowed)
        found = []
        for segment in self.segments:
            mask = _mask(segment, allowed)
            positions = np.arange(segment.rows) if mask is None else np.flatnonzero(mask)
            found.append(_exact(segment, xq, k, positions))
        return merge(found, k) if found else _nothing(len(xq), k)

    def vector(self, row: int) -> np.ndarray:
        """The stored vector (d,) float32 of a row."""
        segment = next(s for s in self.segments if s.start <= row < s.start + s.rows)
        return stored_vectors(segment.index, np.array([row - segment.start]))[0]

    def live(self) -> np.ndarray:
        """Which rows are live: (rows,) bool."""
        parts = [np.ones(s.rows, bool) if s.alive is None else s.alive for s in self.segments]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def _checked(self, xq: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        if xq.ndim != 2 or xq.shape[1] != self.dim:
            raise ValueError(f"queries of shape {xq.shape}, where (nq, {self.dim}) is expected")
        if not np.isfinite(xq).all():
            raise ValueError("a query vector holds NaN or infinity")
        if allowed is not None and (allowed.shape != (self.rows,) or allowed.dtype != bool):
            raise ValueError(f"a filter of shape {allowed.shape}, {allowed.dtype}, where ({self.rows},) bool is expected")
        return np.ascontiguousarray(xq, np.float32)

    def _search_segment(
        self, segment: OpenSegment, xq: np.ndarray, k: int, allowed: np.ndarray | None, params: dict[str, Scalar]
    ) -> Found:
        mask = _mask(segment, allowed)
        matching = segment.rows if mask is None else int(mask.sum())
        if matching == 0:
            return _nothing(len(xq), k)
        if mask is not None and matching <= max(EXACT_SHARE * segment.rows, k):
            return _exact(segment, xq, k, np.flatnonzero(mask))
        wanted = min(k, matching)
        # Where a filter keeps one row in f, the k nearest matching ones lie about f times as many lists away.
        params = widened(params, min(round(segment.rows / matching), MOST_WIDENED))
        similarity, positions = segment.index.search(xq, wanted, params=_parameters(segment.index, params, mask))
        for factor in WIDER:
            short = np.flatnonzero((positions < 0).any(axis=1))
            if not len(short):
                break
            chosen = _parameters(segment.index, widened(params, factor), mask)
            similarity[short], positions[short] = segment.index.search(xq[short], wanted, params=chosen)
        short = np.flatnonzero((positions < 0).any(axis=1))
        if len(short):
            every = np.arange(segment.rows) if mask is None else np.flatnonzero(mask)
            exact = _exact(segment, xq[short], wanted, every)
            similarity[short], positions[short] = exact.similarity, exact.rows - segment.start
        return Found(similarity, np.where(positions < 0, -1, positions + segment.start))


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """FAISS on this many OpenMP threads within the block; the setting belongs to the calling thread alone."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def merge(found: list[Found], k: int) -> Found:
    """The best k of several results over disjoint rows; equal similarities are ordered by row, so the order is stable."""
    similarity = np.concatenate([f.similarity for f in found], axis=1)
    rows = np.concatenate([f.rows for f in found], axis=1)
    similarity = np.where(rows < 0, -np.inf, similarity)
    order = np.lexsort((rows, -similarity), axis=1)[:, :k]
    similarity, rows = np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)
    if similarity.shape[1] < k:
        gap = k - similarity.shape[1]
        similarity = np.pad(similarity, ((0, 0), (0, gap)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, gap)), constant_values=-1)
    return Found(similarity.astype(np.float32), rows)


def ordered(segments: tuple[Segment, ...]) -> list[Segment]:
    """Segments in the order of their rows' handles: shard by shard."""
    return sorted(segments, key=lambda s: (s.shard, s.sequence, s.kind))


def alive_rows(
    segment: Segment, keys: np.ndarray, segments: tuple[Segment, ...], locate: Callable[[FileRef], Path]
) -> np.ndarray | None:
    """Which rows no later tombstone hides; None when there is none to hide them."""
    later = [s for s in segments if s.kind == "tombstones" and s.shard == segment.shard and s.sequence > segment.sequence]
    if not later:
        return None
    hidden = np.concatenate([read_rows(locate(s.table))["key"].to_numpy() for s in later])
    return ~np.isin(keys, hidden)


def _mask(segment: OpenSegment, allowed: np.ndarray | None) -> np.ndarray | None:
    if allowed is None:
        return segment.alive
    part = allowed[segment.start : segment.start + segment.rows]
    return part if segment.alive is None else part & segment.alive


def prepare(index: Any) -> None:
    """Lets stored vectors be read back by position where the family keeps them in lists."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, faiss.IndexIVF) and inner.ntotal:
        inner.make_direct_map(True)


def stored_vectors(index: Any, positions: np.ndarray) -> np.ndarray:
    """Stored vectors (n, d) float32; of a refined index, the finer ones."""
    store = faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(store, faiss.IndexHNSW):
        store = faiss.downcast_index(store.storage)
    return store.reconstruct_batch(np.ascontiguousarray(positions, np.int64))


def _exact(segment: OpenSegment, xq: np.ndarray, k: int, positions: np.ndarray) -> Found:
    heap = faiss.ResultHeap(len(xq), k, keep_max=True)
    for start in range(0, len(positions), EXACT_BLOCK):
        block = positions[start : start + EXACT_BLOCK]
        D, I = faiss.knn(xq, stored_vectors(segment.index, block), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)  # noqa: E741
        heap.add_result(D, np.where(I < 0, -1, block[I]))
    heap.finalize()
    return Found(heap.D, np.where(heap.I < 0, -1, heap.I + segment.start))


def _parameters(index: Any, params: dict[str, Scalar], mask: np.ndarray | None) -> Any:
    """FAISS search parameters of an index's family: `nprobe`, `k_factor`, `ef`, and a bitmap of the rows that count."""
    selector = None
    if mask is not None:
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        selector.bits = bits  # keeps the bitmap alive as long as the selector
    return _family_parameters(index, params, selector)


def _family_parameters(index: Any, params: dict[str, Scalar], selector: Any) -> Any:
    index = faiss.downcast_index(index)
    chosen = {"sel": selector} if selector is not None else {}
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_family_parameters(index.index, params, selector))
    if isinstance(index, faiss.IndexRefine):
        base = _family_parameters(index.base_index, params, selector)
        return faiss.IndexRefineSearchParameters(k_factor=float(params.get("k_factor") or 4), base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(int(params.get("nprobe") or 16), index.nlist), **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(params.get("ef") or 64), **chosen)
    return faiss.SearchParameters(**chosen)


def widened(params: dict[str, Scalar], factor: int) -> dict[str, Scalar]:
    """The same parameters with `factor` times the lists to probe or neighbours to follow."""
    return {n: int(v or 0) * factor if n in EFFORT else v for n, v in params.items()}


def _nothing(nq: int, k: int) -> Found:
    return Found(np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64))
