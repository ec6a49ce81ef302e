"""One FAISS index as an engine: its search parameters, a bitmap of the rows that count, and its stored vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from serving.contract.manifest import Scalar
from serving.engine import Mask
from serving.found import Found

BLOCK = 512
"""Stored vectors decoded at a time: in larger blocks the time goes into fresh pages (measured: 3.7 ms against 0.6 for 2,000)."""
EFFORT = ("nprobe", "ef")
NPROBE, K_FACTOR, EF = 16, 4, 64
"""What is used where a manifest does not say."""


class FaissEngine:
    """An index opened from a segment's file. `index` owns its memory; what downcast_index gives are views of it."""

    def __init__(self, index: Any) -> None:
        self.index, self.rows = index, index.ntotal
        self.unmasked: dict[tuple[tuple[str, Scalar], ...], Any] = {}
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
        if isinstance(inner, faiss.IndexIVF) and inner.ntotal:
            inner.make_direct_map(True)  # stored vectors are read back by position

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Found:
        return Found(*self.index.search(xq, k, params=self._chosen(widened(params, effort), mask)))

    def _chosen(self, params: dict[str, Scalar], mask: Mask | None) -> Any:
        """FAISS's own parameters; those without a mask are the same for every query, and kept."""
        if mask is not None:
            return _parameters(self.index, params, selector(mask))
        key = tuple(params.items())
        if key not in self.unmasked:
            self.unmasked[key] = _parameters(self.index, params, None)
        return self.unmasked[key]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Of a refined index, the finer ones."""
        return stored_vectors(self.index, positions)

    def similarity(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The inner products (n,) of one vector x (d,) float32 and the stored ones at these positions."""
        result = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), BLOCK):
            stored = self.vectors(positions[start : start + BLOCK])
            part = result[start : start + BLOCK]
            faiss.fvec_inner_products_ny(*map(faiss.swig_ptr, (part, x, stored)), len(x), len(stored))
        return result


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


def stored_vectors(index: Any, positions: np.ndarray) -> np.ndarray:
    """Stored vectors (n, d) float32; of a refined index, the finer ones."""
    store = index
    if isinstance(store, faiss.IndexRefine):
        store = faiss.downcast_index(store.refine_index)
    if isinstance(store, faiss.IndexHNSW):
        store = faiss.downcast_index(store.storage)
    if isinstance(store, faiss.IndexFlatCodes) and store.ntotal:
        # Ten times as fast as reconstruct_batch, which sets up a decoder for every vector.
        codes = faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size).reshape(store.ntotal, store.code_size)
        return store.sa_decode(codes.take(positions, axis=0))  # indexing takes two and a half times as long
    return store.reconstruct_batch(np.ascontiguousarray(positions, np.int64))


def selector(mask: Mask) -> Any:
    """FAISS's selector of the rows that count."""
    chosen = faiss.IDSelectorBitmap(len(mask.allowed), faiss.swig_ptr(mask.bits))
    chosen.bits = mask.bits  # keeps the bitmap alive as long as the selector
    return chosen


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
