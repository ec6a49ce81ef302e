"""The vectors that a FAISS index keeps, addressed by position: read back, and compared with queries."""

from typing import Any

import faiss
import numpy as np

from serving.index.code_distance import FEW, CodeDistance
from serving.index.merge import Found, nothing

BLOCK = 2048
"""Stored vectors decoded and compared at a time: four megabytes of dimension 512. Larger blocks spend their time in fresh pages."""


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
        quantised = isinstance(store, faiss.IndexScalarQuantizer)
        self.bfloat = quantised and store.sq.qtype == faiss.ScalarQuantizer.QT_bf16
        self.eight_bit = quantised and store.sq.qtype == faiss.ScalarQuantizer.QT_8bit
        self.codes = _codes(store) if isinstance(store, faiss.IndexFlatCodes) and store.ntotal else None
        self.distance = CodeDistance(store) if quantised and store.ntotal else None

    def query(self, xq: np.ndarray) -> np.ndarray:
        """Queries (nq, d) float32 as they are compared: of bf16 vectors rounded to bf16.

        A processor that multiplies bf16 rounds them itself, others do not: rounded first, similarities are the same everywhere.
        """
        return as_bfloat16(xq) if self.bfloat else xq

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """The vectors (n, d) float32 at these positions."""
        if self.codes is None:
            return self.store.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        # Ten times as fast as reconstruct_batch, which sets up a decoder for every vector.
        return self.store.sa_decode(self.codes[positions])

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        """The k nearest of queries xq (nq, d) float32 among the rows at these positions (n,); (nq, n) where there are only n."""
        xq, k = self.query(xq), min(k, len(positions))
        if not k:
            return nothing(len(xq), 0)
        if self.distance is not None and self.codes is not None and len(xq) <= FEW:
            similarity = self.distance.similarities(xq, self.codes, positions)
            order = np.argsort(-similarity, axis=1)[:, :k]
            return Found(np.take_along_axis(similarity, order, 1), positions[order])
        heap = faiss.ResultHeap(len(xq), k, keep_max=True)
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            similarity, places = faiss.knn(xq, self.vectors(block), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(similarity, np.where(places < 0, -1, block[places]))
        heap.finalize()
        return Found(heap.D, heap.I)


def as_bfloat16(vectors: np.ndarray) -> np.ndarray:
    """The nearest float32 that bf16 can say, its upper 16 bits, of finite numbers (n, d) float32."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _codes(store: Any) -> np.ndarray:
    """The codes (rows, code size) uint8 of an index that keeps them one after the other: a view of its memory."""
    return faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size).reshape(store.ntotal, store.code_size)
