"""The vectors that a FAISS index keeps, addressed by position: read back, and compared with queries."""

import threading
from typing import Any

import faiss
import numpy as np

from serving.found import Found, nothing, one_above_the_other

BLOCK = 2048
"""Stored vectors compared at a time: a megabyte of eight-bit codes of dimension 512. Larger blocks of decoded ones spend their time
in fresh pages."""
FEW = 4
"""Up to so many queries, codes are compared as they are; for more, decoding them once costs less (docs/performance.md, "Refining")."""
WORTH_BYTES = 64_000
"""From so many bytes of eight-bit codes on, copying them pays (docs/performance.md, "Refining")."""
MANY, SHORT = 200, 512
"""So many wanted of codes of at most so many bytes, and what is saved is the heap that FAISS keeps them in; of other codes, too."""


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
        self.bfloat = self.quantised and store.sq.qtype == faiss.ScalarQuantizer.QT_bf16
        self.eight_bit = self.quantised and store.sq.qtype == faiss.ScalarQuantizer.QT_8bit
        self.codes = _codes(store) if isinstance(store, faiss.IndexFlatCodes) and store.ntotal else None
        self.mine = threading.local()

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
        return self.store.sa_decode(self.codes.take(positions, axis=0))  # indexing takes two and a half times as long

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        """The k nearest of queries xq (nq, d) float32 among the rows at these positions (n,); (nq, n) where there are only n."""
        xq = self.query(xq)
        k = min(k, len(positions))
        if not k:
            return nothing(len(xq), 0)
        if self.codes is None or not self.quantised or len(xq) > FEW:
            return decoded(self, xq, positions, k)
        similarity = self._similarities(self.codes, np.ascontiguousarray(xq, np.float32), positions)
        return one_above_the_other([best(row, positions, k) for row in similarity])

    def worth_copying(self, rows: int, wanted: int) -> bool:
        """Whether comparing so many rows, scattered over the memory, is quicker here than by FAISS's refining.

        That reads vector after vector where they lie and waits for each, and keeps those that are wanted in a heap. Copied side by
        side, several are fetched at once; fp16 codes of many numbers are too long to gain from that.
        """
        if self.eight_bit and rows * self.store.code_size >= WORTH_BYTES:
            return True
        return self.quantised and wanted >= MANY and self.store.code_size <= SHORT

    def _similarities(self, codes: np.ndarray, xq: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The similarities (nq, n) of queries and the codes at these positions."""
        similarity = np.empty((len(xq), len(positions)), np.float32)
        beside = self._beside()
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            codes.take(block, axis=0, out=beside.room[: len(block)], mode="clip")  # clip: written to `out` directly
            for x, row in zip(xq, similarity, strict=True):
                beside.compare(x, row[start : start + BLOCK])
        return similarity

    def _beside(self) -> "_Beside":
        """This thread's own room."""
        if not hasattr(self.mine, "beside"):
            self.mine.beside = _Beside(self.store)
        return self.mine.beside


def as_bfloat16(vectors: np.ndarray) -> np.ndarray:
    """The nearest float32 that bf16 can say, its upper 16 bits, of finite numbers (n, d) float32."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def asked(index: Any, xq: np.ndarray, k: int, params: Any = None) -> Found:
    """An index's own search of xq (nq, d). FAISS's wrapper looks at more and takes 2 to 5 us longer."""
    xq = np.ascontiguousarray(xq, np.float32)
    similarity, rows = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    index.search_c(len(xq), faiss.swig_ptr(xq), k, faiss.swig_ptr(similarity), faiss.swig_ptr(rows), params)
    return Found(similarity, rows)


def decoded(stored: Stored, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
    """The k nearest (at most n) among the rows at these positions (n,), by comparing the vectors that they stand for."""
    blocks = [positions[start : start + BLOCK] for start in range(0, len(positions), BLOCK)]
    if len(blocks) == 1:
        return _decoded(stored, xq, positions, k)
    heap = faiss.ResultHeap(len(xq), k, keep_max=True)
    for block in blocks:
        found = _decoded(stored, xq, block, min(k, len(block)))
        heap.add_result(found.similarity, found.rows)
    heap.finalize()
    return Found(heap.D, heap.I)


def _decoded(stored: Stored, xq: np.ndarray, block: np.ndarray, k: int) -> Found:
    similarity, places = faiss.knn(xq, stored.vectors(block), k, metric=faiss.METRIC_INNER_PRODUCT)
    return Found(similarity, np.where(places < 0, -1, block.take(places)))


def best(similarity: np.ndarray, positions: np.ndarray, k: int) -> Found:
    """The k best of one query's similarities (n,) to the rows at these positions (n,)."""
    far = -similarity
    if k * 2 < len(positions):
        nearest = far.argpartition(k - 1)[:k]
        places = nearest.take(far.take(nearest).argsort())
    else:
        places = far.argsort()[:k]
    return Found(similarity.take(places)[None], positions.take(places)[None])


class _Beside:
    """Room (BLOCK, code size) uint8 for copied codes of a scalar quantiser, and FAISS's own comparison of them with a query.

    FAISS's searches keep the best in a heap, which takes several times as long as comparing where most are wanted. What goes through
    an inverted list to find all within a radius does not.
    """

    def __init__(self, store: Any) -> None:
        self.room = np.empty((BLOCK, store.code_size), np.uint8)
        # It stays when this goes: SWIG does not own it. 170 bytes a thread and version.
        self.scanner = store.sq.select_InvertedListScanner(store.metric_type, None, True, None, False)
        self.scanner.set_list(0, 0.0)
        self.result = faiss.RangeSearchResult(1)
        self.result.buffer_size = BLOCK
        self.places = np.empty(BLOCK, np.int64)

    def compare(self, x: np.ndarray, similarity: np.ndarray) -> None:
        """Fills the similarities (rows,) float32 of a query x (d,) float32 and the first rows of the room."""
        found = faiss.RangeSearchPartialResult(self.result)
        mine, rows = found.new_result(0), len(similarity)
        self.scanner.set_query(faiss.swig_ptr(x))
        self.scanner.scan_codes_range(rows, faiss.swig_ptr(self.room), None, -np.inf, mine)
        if mine.nres != rows:
            raise ValueError(f"{rows - mine.nres} of {rows} stored vectors have no similarity to the query: NaN or infinite")
        found.copy_range(0, rows, faiss.swig_ptr(self.places), faiss.swig_ptr(similarity))


def _codes(store: Any) -> np.ndarray:
    """The codes (rows, code size) uint8 of an index that keeps them one after the other: a view of its memory."""
    return faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size).reshape(store.ntotal, store.code_size)
