"""What a search engine must offer to serve an index version: two methods over the rows it holds.

FAISS is behind it (serving/index/faiss_engine.py, serving/index/sharded_ivf.py). Another engine fits by holding rows under positions 0..n-1
and keeping to `Engine`; segments, tombstones, filters, falling back to exact search, merging and handles are the Searcher's and
stay as they are (docs/decisions/0030).
"""

from functools import cached_property
from typing import Protocol

import numpy as np

from serving.contract.manifest import Scalar
from serving.index.merge import Found


class Mask:
    """Which of an engine's rows count: `allowed` (rows,) bool, not to be changed. What is derived from it is kept."""

    def __init__(self, allowed: np.ndarray) -> None:
        self.allowed = allowed
        self.cut: dict[tuple[int, int], Mask] = {}

    @cached_property
    def count(self) -> int:
        """How many rows count."""
        return int(np.count_nonzero(self.allowed))

    @cached_property
    def positions(self) -> np.ndarray:
        """The positions (count,) of the rows that count, ascending."""
        return np.flatnonzero(self.allowed)

    @cached_property
    def bits(self) -> np.ndarray:
        """One bit a row, uint8, the lowest bit first."""
        return np.packbits(self.allowed, bitorder="little")

    def part(self, start: int, stop: int) -> "Mask":
        """The mask of the rows start..stop-1, as an engine that holds only these sees them."""
        if (start, stop) not in self.cut:
            self.cut[start, stop] = Mask(self.allowed[start:stop])
        return self.cut[start, stop]


class Engine(Protocol):
    """Approximate nearest neighbours over `rows` rows, addressed by position 0..rows-1. Safe to use from several threads."""

    rows: int

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Found:
        """The k nearest of unit queries xq (nq, d) float32 by inner product, as positions; k is at most what `mask` lets through.

        Never a row that the mask hides, and none twice. It may find fewer (-1, -inf at the end): then it is asked again with
        `effort` times as wide a search, and at last the Searcher compares vectors itself. `params` are the tuned ones of the
        manifest; an engine ignores those it does not know.
        """
        ...

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Found:
        """The k nearest of xq (nq, d) among the rows at these positions (n,), by the vectors as exactly as the engine keeps them.

        (nq, n) where there are only n.
        """
        ...
