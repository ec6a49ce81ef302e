"""Shards made from one template, searched as one: the coarse search is done once and its lists are handed to every shard.

Each shard searched by itself would repeat the coarse search and refine its own best, so that N shards cost N times what one index
does. Here the shards' estimates are merged first, and only the best of all are refined: the answer is that of one index over all
rows, up to the order of equal estimates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.engine import Mask
from serving.faiss_engine import FaissEngine, innermost, k_factor, probes, selector, widened
from serving.found import Found, Source, gather, merge, nothing, one_above_the_other


class FaissShards:
    """Engines over IVF indexes that were trained as one; position i of shard s is `starts[s] + i`."""

    def __init__(self, engines: Sequence[FaissEngine]) -> None:
        self.engines = list(engines)
        self.starts = np.concatenate([[0], np.cumsum([e.rows for e in engines])])
        self.rows = int(self.starts[-1])
        self.lists = [innermost(e.index) for e in engines]
        self.refined = engines[0].estimating is not None

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Found:
        masks = [None if mask is None else mask.part(*self._span(s)) for s in range(len(self.engines))]
        counts = [e.rows if m is None else m.count for e, m in zip(self.engines, masks, strict=True)]
        x = _transformed(self.engines[0].index, xq)
        closeness, lists = self.lists[0].quantizer.search(x, probes(self.lists[0], widened(params, effort)))
        wanted = min(int(k * k_factor(params)) if self.refined else k, sum(counts))

        def source(shard: int) -> Source:
            chosen = {} if (m := masks[shard]) is None else {"sel": selector(m)}
            scan = faiss.SearchParametersIVF(nprobe=lists.shape[1], **chosen)

            def ask(which: np.ndarray, n: int) -> Found:
                found = _preassigned(self.lists[shard], x[which], n, lists[which], closeness[which], scan)
                return Found(found.similarity, np.where(found.rows < 0, -1, found.rows + self.starts[shard]))

            return Source(ask, counts[shard] / sum(counts))

        estimates = gather([source(s) for s in range(len(self.engines)) if counts[s]], len(xq), wanted)
        if not self.refined:
            return estimates
        finer = [self.nearest(x[None], rows[rows >= 0], k) for x, rows in zip(xq, estimates.rows, strict=True)]
        return one_above_the_other(finer, k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        found = [(engine.nearest(xq, local, k), start) for engine, start, local in self._by_shard(positions)]
        return merge([Found(f.similarity, f.rows + start) for f, start in found], k) if found else nothing(len(xq), k)

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[FaissEngine, int, np.ndarray]]:
        """Every engine that holds some of the positions, where it starts, and their positions within it."""
        shard = np.searchsorted(self.starts, positions, side="right") - 1
        for number, engine in enumerate(self.engines):
            mine = positions[shard == number]
            if len(mine):
                yield engine, int(self.starts[number]), mine - self.starts[number]

    def _span(self, shard: int) -> tuple[int, int]:
        return int(self.starts[shard]), int(self.starts[shard + 1])


def trained_as_one(engines: Sequence[FaissEngine]) -> bool:
    """Whether all are IVF indexes of one kind with the same rotation, centroids and codebooks, so that lists and estimates agree."""
    learned = [_training(e.index) for e in engines]
    known = [p for p in learned if p is not None]
    return len(known) == len(learned) and all(_equal(known[0], p) for p in known[1:])


def _equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _training(index: Any) -> list[Any] | None:
    """What an IVF index learned, besides its refine store; None for one without lists."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _training(index.base_index)
        return inner and ["refined", *inner]
    if isinstance(index, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        inner = _training(index.index)
        if inner is None or not all(isinstance(t, faiss.LinearTransform) for t in transforms):
            return None
        return [*(faiss.vector_to_array(t.A) for t in transforms), *inner]
    if not isinstance(index, faiss.IndexIVF):
        return None
    learned = [type(index).__name__, index.quantizer.reconstruct_n(0, index.nlist)]
    return [*learned, faiss.vector_to_array(index.pq.centroids)] if hasattr(index, "pq") else learned


def _transformed(index: Any, xq: np.ndarray) -> np.ndarray:
    """Queries as the lists see them: rotated where the index rotates."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _transformed(index.base_index, xq)
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            xq = faiss.downcast_VectorTransform(index.chain.at(number)).apply(xq)
    return xq


def _preassigned(index: Any, x: np.ndarray, k: int, lists: np.ndarray, closeness: np.ndarray, scan: Any) -> Found:
    """The k nearest within lists (nq, nprobe) that were found before; FAISS's own wrapper takes no parameters."""
    similarity, rows = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    x, lists, closeness = (np.ascontiguousarray(a) for a in (x, lists, closeness))
    pointers = [faiss.swig_ptr(a) for a in (x, lists, closeness, similarity, rows)]
    index.search_preassigned_c(len(x), pointers[0], k, *pointers[1:], False, scan)
    return Found(similarity, rows)
