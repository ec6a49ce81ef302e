"""The vectors that a FAISS index keeps, addressed by position: read back, and compared with queries."""

import threading
from typing import Any

import faiss
import numpy as np

from serving.found import Found, nothing

BLOCK = 2048
"""Stored vectors compared at a time: a megabyte of eight-bit codes of dimension 512. Larger blocks of decoded ones spend their time
in fresh pages."""
FEW = 4
"""Up to so many queries, codes are compared as they are; for more, decoding them once costs less (docs/performance.md, "Refining")."""
WORTH_BYTES = 250_000
"""From so many bytes of eight-bit codes on, copying them pays (docs/performance.md, "Refining")."""

SORTED = 2
"""Where k of at most so many times k eight-bit codes are wanted, all are sorted: keeping a heap of k takes longer
(docs/performance.md, "Refining")."""


class Stored:
    """The stored vectors of an index, of a refined one the finer ones. The index must not change as long as this is used."""

    def __init__(self, index: Any) -> None:
        self.index = index
        store = faiss.downcast_index(index)
        if isinstance(store, faiss.IndexRefine):
            store = faiss.downcast_index(store.refine_index)
        if isinstance(store, faiss.IndexHNSW):
            store = faiss.downcast_index(store.storage)
        self.store = store
        self.quantised = isinstance(store, faiss.IndexScalarQuantizer)
        self.eight_bit = self.quantised and store.sq.qtype == faiss.ScalarQuantizer.QT_8bit
        self.codes = _codes(store) if isinstance(store, faiss.IndexFlatCodes) and store.ntotal else None
        self.mine = threading.local()

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """The vectors (n, d) float32 at these positions."""
        if self.codes is None:
            return self.store.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        # Ten times as fast as reconstruct_batch, which sets up a decoder for every vector.
        return self.store.sa_decode(self.codes.take(positions, axis=0))  # indexing takes two and a half times as long

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        """The k nearest of queries xq (nq, d) float32 among the rows at these positions (n,); (nq, n) where there are only n."""
        if not len(positions):
            return nothing(len(xq), 0)
        blocks = [positions[start : start + BLOCK] for start in range(0, len(positions), BLOCK)]
        if len(blocks) == 1:
            return self._compared(xq, positions, min(k, len(positions)))
        heap = faiss.ResultHeap(len(xq), min(k, len(positions)), keep_max=True)
        for block in blocks:
            found = self._compared(xq, block, min(k, len(block)))
            heap.add_result(found.similarity, found.rows)
        heap.finalize()
        return Found(heap.D, heap.I)

    def worth_copying(self, rows: int) -> bool:
        """Whether comparing so many rows, scattered over the memory, is quicker here than by FAISS's refining.

        That reads vector after vector where they lie and waits for each; copied side by side, several are fetched at once. It is
        so with eight-bit codes, and not with the longer fp16 ones.
        """
        return self.eight_bit and rows * self.store.code_size >= WORTH_BYTES

    def _compared(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        if self.codes is None or not self.quantised or len(xq) > FEW:
            return decoded(self, xq, positions, k)
        beside = self._beside(len(positions))
        self.codes.take(positions, axis=0, out=beside.room[: len(positions)], mode="clip")  # clip: written to `out` directly
        few_left_out = self.eight_bit and len(xq) == 1 and len(positions) <= SORTED * k
        found = beside.sorted(xq, len(positions), k) if few_left_out else asked(beside.index, xq, k)
        return Found(found.similarity, positions.take(found.rows))

    def _beside(self, rows: int) -> "_Beside":
        """This thread's own copy, of so many rows."""
        beside = getattr(self.mine, "beside", None)
        if beside is None or len(beside.room) < rows:
            beside = self.mine.beside = _Beside(self.store, max(rows, BLOCK // 2))
        beside.index.ntotal = rows
        return beside


def asked(index: Any, xq: np.ndarray, k: int, params: Any = None) -> Found:
    """An index's own search of xq (nq, d). FAISS's wrapper looks at more and takes 2 to 5 us longer."""
    xq = np.ascontiguousarray(xq, np.float32)
    similarity, rows = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    index.search_c(len(xq), faiss.swig_ptr(xq), k, faiss.swig_ptr(similarity), faiss.swig_ptr(rows), params)
    return Found(similarity, rows)


def decoded(stored: Stored, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
    """The k nearest among the rows at these positions, by comparing the vectors (n, d) that they stand for."""
    similarity, places = faiss.knn(xq, stored.vectors(positions), k, metric=faiss.METRIC_INNER_PRODUCT)
    return Found(similarity, np.where(places < 0, -1, positions.take(places)))


class _Beside:
    """An index of the same kind and training as a scalar quantiser's, whose `room` (most, code size) is there to be written over."""

    def __init__(self, store: Any, most: int) -> None:
        self.index = faiss.IndexScalarQuantizer(store.d, store.sq.qtype, store.metric_type)
        self.index.sq, self.index.is_trained, self.index.ntotal = store.sq, True, most
        self.index.codes.resize(most * store.code_size)
        self.room = _codes(self.index)
        self.plain = np.empty((most, store.d), np.float32)

    def sorted(self, xq: np.ndarray, rows: int, k: int) -> Found:
        """The k nearest of one query (1, d) among the first rows, all of them compared and sorted.

        Without BLAS, which would wake threads of its own for it.
        """
        xq, similarity = np.ascontiguousarray(xq, np.float32), np.empty(rows, np.float32)
        self.index.sa_decode_c(rows, faiss.swig_ptr(self.room), faiss.swig_ptr(self.plain))
        places = faiss.swig_ptr(xq), faiss.swig_ptr(self.plain)
        faiss.fvec_inner_products_ny(faiss.swig_ptr(similarity), *places, xq.shape[1], rows)
        order = np.argsort(-similarity)[:k]
        return Found(similarity.take(order)[None], order[None])


def _codes(store: Any) -> np.ndarray:
    """The codes (rows, code size) uint8 of an index that keeps them one after the other: a view of its memory."""
    return faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size).reshape(store.ntotal, store.code_size)
