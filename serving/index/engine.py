"""The interface of a vector search engine: two methods over the rows it holds.

FAISS implements it (faiss_engine.py, sharded_ivf.py), and so does a collection of another system (remote_engine.py). An engine
addresses its rows by position 0..n-1 and implements `Engine`; segments, tombstones, filters, the fallback to exact search, merging
and handles belong to the Searcher (docs/decisions/0030, 0095).
"""

from functools import cached_property
from typing import Protocol

import numpy as np

from serving.circuit_breaker import RemoteUnavailable
from serving.contract.manifest import Scalar
from serving.index.merge import Neighbors


class EngineUnavailable(RemoteUnavailable):
    """An engine in another process does not answer."""

    reason = "engine_away"


class FilterTooSlow(Exception):
    """The rows that a filter leaves were not compared in time: of this search alone, the engine is there."""

    status, reason = 504, "filter_too_slow"


class Mask:
    """Rows of an engine that may be returned: `allowed` (rows,) bool, not to be changed. Derived forms are computed once."""

    def __init__(self, allowed: np.ndarray) -> None:
        self.allowed = allowed
        self.slices: dict[tuple[int, int], Mask] = {}

    @cached_property
    def count(self) -> int:
        """Number of allowed rows."""
        return int(np.count_nonzero(self.allowed))

    @cached_property
    def positions(self) -> np.ndarray:
        """Positions (count,) of the allowed rows, ascending."""
        return np.flatnonzero(self.allowed)

    @cached_property
    def bits(self) -> np.ndarray:
        """One bit a row, uint8, the lowest bit first."""
        return np.packbits(self.allowed, bitorder="little")

    def slice(self, start: int, stop: int) -> "Mask":
        """The mask of rows start..stop-1, for an engine that holds only these."""
        if (start, stop) not in self.slices:
            self.slices[start, stop] = Mask(self.allowed[start:stop])
        return self.slices[start, stop]


class Engine(Protocol):
    """Approximate nearest neighbours over `rows` rows, addressed by position 0..rows-1. Safe to use from several threads."""

    rows: int

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        """Approximate k nearest of unit queries xq (nq, d) float32 by inner product, as positions; k <= number of allowed rows.

        Returns no masked row and no row twice. May return fewer (-1, -inf at the end): the Searcher then calls again with `effort`
        times as wide a search, and at last searches exactly. `params` are the manifest's tuned search parameters; unknown ones
        are ignored.
        """
        ...

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        """Exact k nearest of xq (nq, d) among the rows at these positions (n,), by the engine's most exact stored vectors.

        Has n columns where n < k.
        """
        ...


class Vectors(Protocol):
    """What holds the vectors of one segment."""

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 at these positions of the segment."""
        ...
