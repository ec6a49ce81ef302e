"""IVF shards trained from one template, searched as one index: one coarse search, whose lists every shard scans.

Shards searched separately would each repeat the coarse search and refine their own best, N times the cost of one index. Here only
the best estimates over all shards are refined, so the result is that of one index over all rows; estimates that tie with the last
are all refined.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.index.coarse import search_preassigned
from serving.index.engine import Mask
from serving.index.faiss_engine import FaissEngine, innermost, k_factor, probes, scale_effort
from serving.index.merge import Neighbors, Partition, empty, merge, over_fetch, stack


class ShardedIvf:
    """One engine over IVF indexes that share their training; position i of shard s is `starts[s] + i`."""

    def __init__(self, engines: Sequence[FaissEngine]) -> None:
        self.engines = list(engines)
        self.starts = np.concatenate([[0], np.cumsum([e.rows for e in engines])])
        self.rows = int(self.starts[-1])
        self.lists = [innermost(e.index) for e in engines]
        self.transforms = _transforms(engines[0].index)
        self.refined = engines[0].base_index is not None

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        masks = [None if mask is None else mask.slice(*self._span(s)) for s in range(len(self.engines))]
        counts = [e.rows if m is None else m.count for e, m in zip(self.engines, masks, strict=True)]
        whole, held = sum(counts), [s for s, count in enumerate(counts) if count]
        x = xq
        for transform in self.transforms:
            x = transform.apply(x)
        closeness, nearest = self.lists[0].quantizer.search(x, probes(self.lists[0], scale_effort(params, effort)))

        def partition(shard: int) -> Partition:
            lists, live = self.lists[shard], masks[shard]

            def search(which: np.ndarray, n: int) -> Neighbors:
                return search_preassigned(lists, x[which], n, Neighbors(closeness[which], nearest[which]), live)

            return Partition(search, counts[shard] / whole)

        if not held:
            return empty(len(xq), k)
        wanted = min(int(k * k_factor(params)) if self.refined else k, whole)
        results, last = over_fetch([partition(s) for s in held], len(xq), wanted)
        if self.refined:
            results = [_refine(self.engines[s], xq, f, last, k) for s, f in zip(held, results, strict=True)]
        return merge([_shift(f, int(self.starts[s])) for s, f in zip(held, results, strict=True)], k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        results = [(engine.nearest(xq, local, k), start) for engine, start, local in self._by_shard(positions)]
        return merge([_shift(f, start) for f, start in results], k) if results else empty(len(xq), k)

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[FaissEngine, int, np.ndarray]]:
        """Splits positions by shard: (engine, its first position, the positions within it)."""
        shard = np.searchsorted(self.starts, positions, side="right") - 1
        for number, engine in enumerate(self.engines):
            mine = positions[shard == number]
            if len(mine):
                yield engine, int(self.starts[number]), mine - self.starts[number]

    def _span(self, shard: int) -> tuple[int, int]:
        return int(self.starts[shard]), int(self.starts[shard + 1])


def share_training(engines: Sequence[FaissEngine]) -> bool:
    """Whether all are IVF indexes of one type with equal rotations, centroids and codebooks, so that lists and estimates agree."""
    learned = [_training(e.index) for e in engines]
    known = [p for p in learned if p is not None]
    return len(known) == len(learned) and all(_equal(known[0], p) for p in known[1:])


def _equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _training(index: Any) -> list[Any] | None:
    """Trained parameters of an IVF index, without its refine index; None for an index without lists."""
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
    """Transforms of an IndexPreTransform, applied to queries before the lists. Views: `index` must stay referenced."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _transforms(index.base_index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def _refine(engine: FaissEngine, xq: np.ndarray, estimates: Neighbors, last: np.ndarray, k: int) -> Neighbors:
    """Exact k nearest of each query among the rows whose estimate is at least its `last` (nq,)."""
    good = (estimates.similarity >= last[:, None]) & (estimates.rows >= 0)
    chosen = [rows[which] for rows, which in zip(estimates.rows, good, strict=True)]
    return stack([engine.nearest(xq[n : n + 1], rows, k) for n, rows in enumerate(chosen)])


def _shift(result: Neighbors, start: int) -> Neighbors:
    """Adds `start` to every position; -1 stays."""
    return result if not start else Neighbors(result.similarity, np.where(result.rows < 0, -1, result.rows + start))
