"""Shards made from one template, searched as one: the coarse search is done once and its lists are handed to every shard.

Each shard searched by itself would repeat the coarse search and refine its own best, so that N shards cost N times what one index
does. Here only the best of all shards' estimates are refined: the answer is that of one index over all rows; of estimates that are
equal at the end, all are refined.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.index.coarse import search_lists
from serving.index.engine import Mask
from serving.index.faiss_engine import FaissEngine, innermost, k_factor, probes, widened
from serving.index.merge import Found, Source, merge, nothing, one_above_the_other, shares


class FaissShards:
    """Engines over IVF indexes that were trained as one; position i of shard s is `starts[s] + i`."""

    def __init__(self, engines: Sequence[FaissEngine]) -> None:
        self.engines = list(engines)
        self.starts = np.concatenate([[0], np.cumsum([e.rows for e in engines])])
        self.rows = int(self.starts[-1])
        self.lists = [innermost(e.index) for e in engines]
        self.transforms = _transforms(engines[0].index)
        self.refined = engines[0].estimating is not None

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Found:
        masks = [None if mask is None else mask.part(*self._span(s)) for s in range(len(self.engines))]
        counts = [e.rows if m is None else m.count for e, m in zip(self.engines, masks, strict=True)]
        whole, held = sum(counts), [s for s, count in enumerate(counts) if count]
        x = xq
        for transform in self.transforms:
            x = transform.apply(x)
        closeness, nearest = self.lists[0].quantizer.search(x, probes(self.lists[0], widened(params, effort)))

        def source(shard: int) -> Source:
            lists, live = self.lists[shard], masks[shard]

            def ask(which: np.ndarray, n: int) -> Found:
                return search_lists(lists, x[which], n, Found(closeness[which], nearest[which]), live)

            return Source(ask, counts[shard] / whole)

        if not held:
            return nothing(len(xq), k)
        wanted = min(int(k * k_factor(params)) if self.refined else k, whole)
        found, last = shares([source(s) for s in held], len(xq), wanted)
        if self.refined:
            found = [_refined(self.engines[s], xq, f, last, k) for s, f in zip(held, found, strict=True)]
        return merge([_moved(f, int(self.starts[s])) for s, f in zip(held, found, strict=True)], k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        found = [(engine.nearest(xq, local, k), start) for engine, start, local in self._by_shard(positions)]
        return merge([_moved(f, start) for f, start in found], k) if found else nothing(len(xq), k)

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
        transforms = _transforms(index)
        inner = _training(index.index)
        if inner is None or not all(isinstance(t, faiss.LinearTransform) for t in transforms):
            return None
        return [*(faiss.vector_to_array(t.A) for t in transforms), *inner]
    if not isinstance(index, faiss.IndexIVF):
        return None
    learned = [type(index).__name__, index.quantizer.reconstruct_n(0, index.nlist)]
    return [*learned, faiss.vector_to_array(index.pq.centroids)] if hasattr(index, "pq") else learned


def _transforms(index: Any) -> list[Any]:
    """What is done to queries before the lists see them: rotations, where the index rotates. Views: `index` must stay referenced."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _transforms(index.base_index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def _refined(engine: FaissEngine, xq: np.ndarray, estimates: Found, last: np.ndarray, k: int) -> Found:
    """The k nearest of each query among the rows whose estimate is at least its `last` (nq,)."""
    good = (estimates.similarity >= last[:, None]) & (estimates.rows >= 0)
    chosen = [rows[which] for rows, which in zip(estimates.rows, good, strict=True)]
    return one_above_the_other([engine.nearest(xq[n : n + 1], rows, k) for n, rows in enumerate(chosen)])


def _moved(found: Found, start: int) -> Found:
    """The same rows where the first one has the position `start`; -1 stays."""
    return found if not start else Found(found.similarity, np.where(found.rows < 0, -1, found.rows + start))
