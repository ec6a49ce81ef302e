"""Stored vectors of a FAISS index by position: reconstruction, and exact search among given positions."""

from typing import Any

import faiss
import numpy as np

from serving.index.code_distance import MAX_QUERIES, CodeDistance
from serving.index.merge import Neighbors, empty

BLOCK = 2048
"""Vectors decoded and compared at a time: 4 MB at dimension 512. Larger blocks spend their time in page faults."""


class StoredVectors:
    """Stored vectors of an index; of an IndexRefine, those of its refine index. The index must not change while this is in use."""

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

    def round_queries(self, xq: np.ndarray) -> np.ndarray:
        """Rounds queries (nq, d) float32 to bf16 where the stored vectors are bf16; else gives them unchanged.

        CPUs with bf16 multiplication round queries themselves, others do not: rounding first gives the same similarities everywhere.
        """
        return as_bfloat16(xq) if self.bfloat else xq

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Reconstructs the vectors (n, d) float32 at these positions."""
        if self.codes is None:
            return self.store.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        # Ten times as fast as reconstruct_batch, which sets up a decoder for every vector.
        return self.store.sa_decode(self.codes[positions])

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        """Exact k nearest of queries xq (nq, d) float32 among the rows at these positions (n,); n columns where n < k."""
        xq, k = self.round_queries(xq), min(k, len(positions))
        if not k:
            return empty(len(xq), 0)
        if self.distance is not None and self.codes is not None and len(xq) <= MAX_QUERIES:
            similarity = self.distance.similarities(xq, self.codes, positions)
            order = np.argsort(-similarity, axis=1)[:, :k]
            return Neighbors(similarity[np.arange(len(xq))[:, None], order], positions[order])
        heap = faiss.ResultHeap(len(xq), k, keep_max=True)
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            similarity, places = faiss.knn(xq, self.vectors(block), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(similarity, np.where(places < 0, -1, block[places]))
        heap.finalize()
        return Neighbors(heap.D, heap.I)


def as_bfloat16(vectors: np.ndarray) -> np.ndarray:
    """Rounds finite float32 (n, d) to bf16, kept as float32 whose lower 16 bits are zero."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _codes(store: Any) -> np.ndarray:
    """Codes (rows, code size) uint8 of an IndexFlatCodes: a view of its memory."""
    return faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size).reshape(store.ntotal, store.code_size)
