"""Engine over one FAISS index: search parameters by index type, row masks as selectors, stored vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.index.coarse import selector
from serving.index.code_distance import MIN_CANDIDATES
from serving.index.engine import Mask
from serving.index.merge import Neighbors, stack
from serving.index.refine import StoredVectors

EFFORT = ("nprobe", "ef")
SEARCH_PARAMETERS = (*EFFORT, "k_factor")
NPROBE, K_FACTOR, EF = 16, 4, 64
"""Defaults where a manifest sets none."""
QUERY_BY_QUERY = 11
"""IndexIVFFastScan.implem: scan the lists query by query. FAISS's default (13) shares a list's codes between queries and prepares
for that even for a single query: docs/benchmarks.md, "Refining"."""


class FaissEngine:
    """Engine over the index of one segment. `index` owns its memory; results of downcast_index are views of it."""

    def __init__(self, index: Any) -> None:
        self.index, self.rows = index, index.ntotal
        self.store = StoredVectors(index)
        self.dim = index.d
        self.unmasked: dict[tuple[object, ...], Any] = {}
        view = faiss.downcast_index(index)
        self.base_index = faiss.downcast_index(view.base_index) if isinstance(view, faiss.IndexRefine) else None
        lists = innermost(index)
        if isinstance(lists, faiss.IndexIVFFastScan):
            lists.implem = QUERY_BY_QUERY
        if isinstance(lists, faiss.IndexIVF) and lists.ntotal and self.base_index is None:
            lists.make_direct_map(True)  # stored vectors are read back by position

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        if xq.shape[1] != self.dim:
            raise ValueError(f"queries of dimension {xq.shape[1]}, where the index has {self.dim}")
        xq, chosen = self.store.round_queries(xq), self._chosen(params, effort, mask)
        wanted = min(int(k * k_factor(params)), self.rows if mask is None else mask.count)
        if self.base_index is None or not self.store.eight_bit or wanted < MIN_CANDIDATES:
            return Neighbors(*self.index.search(xq, k, params=chosen))
        estimates = self.base_index.search(xq, wanted, params=chosen.base_index_params)[1]
        refined = [self.nearest(x[None], rows[rows >= 0], k) for x, rows in zip(xq, estimates, strict=True)]
        return stack(refined, k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        return self.store.nearest(xq, positions, k)

    def _chosen(self, params: dict[str, Scalar], effort: int, mask: Mask | None) -> Any:
        """FAISS search parameters; those without a mask are cached, as every query uses the same."""
        if mask is not None:
            return _parameters(self.index, scale_effort(params, effort), selector(mask))
        key = (effort, *params.items())
        if key not in self.unmasked:
            self.unmasked[key] = _parameters(self.index, scale_effort(params, effort), None)
        return self.unmasked[key]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 at these positions; of an IndexRefine, those of its refine index."""
        return self.store.vectors(positions)


def innermost(index: Any) -> Any:
    """A view of the index inside IndexRefine and IndexPreTransform wrappers; the index itself where there are none."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return innermost(index.base_index)
    return innermost(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def is_flat(engine: FaissEngine) -> bool:
    """Whether the engine's index is an IndexFlat."""
    return isinstance(faiss.downcast_index(engine.index), faiss.IndexFlat)


def concat_flat(engines: Sequence[FaissEngine]) -> FaissEngine:
    """Concatenates flat engines into one, copying their vectors: a search of a flat index costs 0.05 ms however small it is."""
    if len(engines) == 1:
        return engines[0]
    whole = faiss.IndexFlat(engines[0].index.d, faiss.METRIC_INNER_PRODUCT)
    for engine in engines:
        if engine.rows:
            whole.add(engine.vectors(np.arange(engine.rows)))
    return FaissEngine(whole)


def scale_effort(params: dict[str, Scalar], factor: int) -> dict[str, Scalar]:
    """The same parameters with `nprobe` and `ef` multiplied by `factor`."""
    return {n: int(v or 0) * factor if n in EFFORT else v for n, v in params.items()}


def probes(index: Any, params: dict[str, Scalar]) -> int:
    """The number of lists to scan: `nprobe`, at most nlist."""
    return min(int(params.get("nprobe") or NPROBE), index.nlist)


def k_factor(params: dict[str, Scalar]) -> float:
    """Candidates per result that IndexRefine compares exactly."""
    return float(params.get("k_factor") or K_FACTOR)


@contextmanager
def omp_threads(count: int) -> Iterator[None]:
    """Sets FAISS's OpenMP threads within the block, for the calling thread alone."""
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
