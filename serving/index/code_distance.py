"""Similarities of queries to scalar-quantised codes, computed on the codes, without decoding them and without a heap.

Shards and filtered candidates are refined by position, which FAISS's IndexRefine does not offer; the plain alternative decodes
the vectors (`sa_decode`) and compares them (`faiss.knn`). Kept because without it a whole search (1M x 512, 500
candidates, nprobe 64, one thread, median of seven pairs in turns) takes 1.22 of the time in two shards of SQ8 and 1.64 in two of fp16,
and 1.27 in one index of SQ8, where IndexRefine reads vector after vector and keeps a heap (docs/decisions/0064, `make bench-refine`).
"""

import threading
from typing import Any

import faiss
import numpy as np

BLOCK = 2048
"""Codes copied at a time: 1 MB of 8-bit codes at dimension 512."""
MAX_QUERIES = 4
"""Largest batch of queries compared on codes; beyond, decoding the vectors once costs less."""
MIN_CANDIDATES = 100
"""Fewest 8-bit candidates of one index compared here; for fewer, and for fp16, IndexRefine is faster."""


class CodeDistance:
    """Similarities over the codes of an IndexScalarQuantizer `store`. Thread-safe: each thread has its own scanner."""

    def __init__(self, store: Any) -> None:
        self.store, self.local = store, threading.local()

    def similarities(self, xq: np.ndarray, codes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Similarities (nq, n) float32 of queries xq (nq, d) float32 and rows `positions` (n,) of codes (rows, code size) uint8.

        Raises ValueError where a stored vector holds NaN or infinity.
        """
        similarity = np.empty((len(xq), len(positions)), np.float32)
        if not hasattr(self.local, "scanner"):
            self.local.scanner = _Scanner(self.store)
        for start in range(0, len(positions), BLOCK):
            block = codes.take(positions[start : start + BLOCK], axis=0)
            for x, row in zip(np.ascontiguousarray(xq, np.float32), similarity, strict=True):
                self.local.scanner.compare(x, block, row[start : start + BLOCK])
        return similarity


class _Scanner:
    """FAISS's scanner of an inverted list that finds all within an infinite radius: every row, in order, without a heap."""

    def __init__(self, store: Any) -> None:
        # It stays when this goes: SWIG does not own it. 170 bytes a thread and version.
        self.scanner = store.sq.select_InvertedListScanner(store.metric_type, None, True, None, False)
        self.scanner.set_list(0, 0.0)
        self.result = faiss.RangeSearchResult(1)
        self.result.buffer_size = BLOCK
        self.rows = np.empty(BLOCK, np.int64)

    def compare(self, x: np.ndarray, codes: np.ndarray, similarity: np.ndarray) -> None:
        """Fills the similarities (n,) float32 of a query x (d,) float32 and codes (n, code size) uint8, n <= BLOCK."""
        found = faiss.RangeSearchPartialResult(self.result)
        mine, rows = found.new_result(0), len(codes)
        self.scanner.set_query(faiss.swig_ptr(x))
        self.scanner.scan_codes_range(rows, faiss.swig_ptr(codes), None, -np.inf, mine)
        if mine.nres != rows:
            raise ValueError(f"{rows - mine.nres} of {rows} stored vectors have no similarity to the query: NaN or infinite")
        found.copy_range(0, rows, faiss.swig_ptr(self.rows), faiss.swig_ptr(similarity))
