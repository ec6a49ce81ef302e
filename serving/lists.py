"""The lists of an IVF index: which are nearest to queries, and what is nearest in lists that were chosen."""

from functools import cached_property
from typing import Any

import faiss
import numpy as np

from serving.engine import Mask
from serving.found import Found, one_above_the_other
from serving.stored import asked, best

SEVERAL = range(2, 65)
WORTH_BYTES = 1 << 20
"""So many queries are compared with centroids of so many bytes by products of matrices: docs/performance.md, "Refining"."""
BLOCK = 128
"""Centroids a product: so few that OpenBLAS multiplies them where they lie. More it copies first, which takes longer than reading
them."""


class Lists:
    """An IVF index as a view, whose owner must stay referenced and must not change."""

    def __init__(self, index: Any) -> None:
        self.index, self.count = index, index.nlist
        self.quantizer = faiss.downcast_index(index.quantizer)
        self.unmasked: dict[int, Any] = {}
        flat = isinstance(self.quantizer, faiss.IndexFlat) and self.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        self.worth = flat and self.quantizer.code_size * self.quantizer.ntotal >= WORTH_BYTES

    @cached_property
    def centroids(self) -> np.ndarray:
        """The centroids (blocks, BLOCK, d) float32, zeros after the last. A copy: where a file is mapped, floats lie anywhere."""
        centroids = np.zeros((-(-self.count // BLOCK), BLOCK, self.quantizer.d), np.float32)
        centroids.reshape(-1, self.quantizer.d)[: self.count] = self.quantizer.reconstruct_n(0, self.count)
        return centroids

    def reads_once(self, queries: int) -> bool:
        """Whether `nearest` reads the centroids once for so many queries."""
        return self.worth and queries in SEVERAL

    def nearest(self, xq: np.ndarray, nprobe: int) -> Found:
        """The lists whose centroids are nearest to queries xq (nq, d), as `Found`, best first.

        FAISS goes through all centroids query by query: with several queries, megabytes of them as often. Products of matrices read
        them once. They sum in another order, so that similarities differ in their last bits from those of a query by itself.
        """
        if not self.reads_once(len(xq)):
            return asked(self.quantizer, xq, nprobe)
        similarity = np.ascontiguousarray((self.centroids @ xq.T).reshape(-1, len(xq))[: self.count].T)
        return one_above_the_other([best(row, np.arange(self.count), nprobe) for row in similarity])

    def search(self, xq: np.ndarray, k: int, chosen: Found, mask: Mask | None) -> Found:
        """The k nearest of queries xq (nq, d) within the lists chosen for each of them; FAISS's own wrapper takes no parameters."""
        similarity, rows = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
        xq, lists, closeness = (np.ascontiguousarray(a) for a in (xq, chosen.rows, chosen.similarity))
        pointers = [faiss.swig_ptr(a) for a in (xq, lists, closeness, similarity, rows)]
        scan = self._scan(lists.shape[1], mask)
        self.index.search_preassigned_c(len(xq), pointers[0], k, *pointers[1:], False, scan)
        return Found(similarity, rows)

    def _scan(self, nprobe: int, mask: Mask | None) -> Any:
        """FAISS's parameters for going through so many lists; those without a mask are kept."""
        if mask is not None:
            return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector(mask))
        if nprobe not in self.unmasked:
            self.unmasked[nprobe] = faiss.SearchParametersIVF(nprobe=nprobe)
        return self.unmasked[nprobe]


def selector(mask: Mask) -> Any:
    """FAISS's selector of the rows that count."""
    chosen = faiss.IDSelectorBitmap(len(mask.allowed), faiss.swig_ptr(mask.bits))
    chosen.bits = mask.bits  # keeps the bitmap alive as long as the selector
    return chosen
