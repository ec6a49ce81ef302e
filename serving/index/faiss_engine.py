"""One FAISS index as an engine: its search parameters, a bitmap of the rows that count, and its stored vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.index.coarse import selector
from serving.index.code_distance import LEAST
from serving.index.engine import Mask
from serving.index.merge import Found, one_above_the_other
from serving.index.refine import Stored

EFFORT = ("nprobe", "ef")
TUNED = (*EFFORT, "k_factor")
NPROBE, K_FACTOR, EF = 16, 4, 64
"""What is used where a manifest does not say."""
ONE_BY_ONE = 11
"""FAISS's way through the lists of a fast scan, query after query. Its own choice (13) shares a list's codes between queries and
prepares for that even where there is one: docs/performance.md, "Refining"."""


class FaissEngine:
    """An index opened from a segment's file. `index` owns its memory; what downcast_index gives are views of it."""

    def __init__(self, index: Any) -> None:
        self.index, self.rows = index, index.ntotal
        self.stored = Stored(index)
        self.dim = index.d
        self.unmasked: dict[tuple[object, ...], Any] = {}
        view = faiss.downcast_index(index)
        self.estimating = faiss.downcast_index(view.base_index) if isinstance(view, faiss.IndexRefine) else None
        lists = innermost(index)
        if isinstance(lists, faiss.IndexIVFFastScan):
            lists.implem = ONE_BY_ONE
        if isinstance(lists, faiss.IndexIVF) and lists.ntotal and self.estimating is None:
            lists.make_direct_map(True)  # stored vectors are read back by position

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Found:
        if xq.shape[1] != self.dim:
            raise ValueError(f"queries of dimension {xq.shape[1]}, where the index has {self.dim}")
        xq, chosen = self.stored.query(xq), self._chosen(params, effort, mask)
        wanted = min(int(k * k_factor(params)), self.rows if mask is None else mask.count)
        if self.estimating is None or not self.stored.eight_bit or wanted < LEAST:
            return Found(*self.index.search(xq, k, params=chosen))
        estimates = self.estimating.search(xq, wanted, params=chosen.base_index_params)[1]
        refined = [self.nearest(x[None], rows[rows >= 0], k) for x, rows in zip(xq, estimates, strict=True)]
        return one_above_the_other(refined, k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        return self.stored.nearest(xq, positions, k)

    def _chosen(self, params: dict[str, Scalar], effort: int, mask: Mask | None) -> Any:
        """FAISS's own parameters; those without a mask are the same for every query, and kept."""
        if mask is not None:
            return _parameters(self.index, widened(params, effort), selector(mask))
        key = (effort, *params.items())
        if key not in self.unmasked:
            self.unmasked[key] = _parameters(self.index, widened(params, effort), None)
        return self.unmasked[key]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """The stored vectors (n, d) float32 at these positions; of a refined index, the finer ones."""
        return self.stored.vectors(positions)


def innermost(index: Any) -> Any:
    """A view of the index inside a refined or rotated one; itself where it is neither."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return innermost(index.base_index)
    return innermost(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def is_flat(engine: FaissEngine) -> bool:
    """Whether an engine compares every vector."""
    return isinstance(faiss.downcast_index(engine.index), faiss.IndexFlat)


def together(engines: Sequence[FaissEngine]) -> FaissEngine:
    """Flat engines as one, their vectors copied one after the other: each search of a small one costs 0.05 ms whatever it holds."""
    if len(engines) == 1:
        return engines[0]
    whole = faiss.IndexFlat(engines[0].index.d, faiss.METRIC_INNER_PRODUCT)
    for engine in engines:
        if engine.rows:
            whole.add(engine.vectors(np.arange(engine.rows)))
    return FaissEngine(whole)


def widened(params: dict[str, Scalar], factor: int) -> dict[str, Scalar]:
    """The same parameters with `factor` times the lists to probe or neighbours to follow."""
    return {n: int(v or 0) * factor if n in EFFORT else v for n, v in params.items()}


def probes(index: Any, params: dict[str, Scalar]) -> int:
    """How many of its lists an IVF index is to scan."""
    return min(int(params.get("nprobe") or NPROBE), index.nlist)


def k_factor(params: dict[str, Scalar]) -> float:
    """How many times k estimates are refined."""
    return float(params.get("k_factor") or K_FACTOR)


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """FAISS on this many OpenMP threads within the block; the setting belongs to the calling thread alone."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _parameters(index: Any, params: dict[str, Scalar], chosen: Any) -> Any:
    """FAISS search parameters of an index's family: `nprobe`, `k_factor`, `ef`, and the selector where there is one."""
    index = faiss.downcast_index(index)
    rows = {"sel": chosen} if chosen is not None else {}
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, params, chosen))
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, params, chosen)
        return faiss.IndexRefineSearchParameters(k_factor=k_factor(params), base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=probes(index, params), **rows)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(params.get("ef") or EF), **rows)
    return faiss.SearchParameters(**rows)
