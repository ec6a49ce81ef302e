"""Counts the work of searches in the engines, including repeated searches with larger effort, which no formula predicts."""

import copy

import numpy as np

from serving.contract.manifest import Scalar
from serving.index.engine import Engine, Mask
from serving.index.faiss_engine import scale_effort
from serving.index.merge import Neighbors
from serving.index.searcher import Searcher
from serving.index.segment_group import WIDENING
from tasks.index.families import Family

CALL_US = 50.0
"""Microseconds that asking an engine costs whatever it holds (serving/index/faiss_engine.py, `together`)."""
COMPARED_US = 1 / 3
"""Microseconds for each row that is read and compared one by one (serving/index/segment_group.py, `EXACT_ROWS`)."""


class CountingEngine:
    """An engine that records its calls: `searches` as (queries, k, effort), and the number of `rows_compared`.

    Safe to use from several threads, as an append is one step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, engine.rows
        self.searches: list[tuple[int, int, int]] = []
        self.rows_compared: list[int] = []

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        self.searches.append((len(xq), k, effort))
        return self.engine.search(xq, k, mask, params, effort)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        self.rows_compared.append(len(xq) * len(positions))
        return self.engine.nearest(xq, positions, k)


class CostCounter:
    """Counts the work of a searcher. `searcher` is a copy over counting engines; the original is untouched."""

    def __init__(self, searcher: Searcher, family: Family, nlist: int) -> None:
        self.family, self.nlist = family, nlist
        self.searcher = copy.copy(searcher)
        self.searcher.groups = [copy.copy(part) for part in searcher.groups]
        self.engines = [CountingEngine(part.engine) for part in self.searcher.groups]
        for part, engine in zip(self.searcher.groups, self.engines, strict=True):
            part.engine = engine

    def reset(self) -> None:
        """Resets the counts."""
        for engine in self.engines:
            engine.searches.clear()
            engine.rows_compared.clear()

    def us(self, params: dict[str, Scalar], widening: bool = True) -> float:
        """Counted work in microseconds under these parameters; without `widening`, as if no search had been repeated."""
        total = 0.0
        for engine in self.engines:
            for queries, k, effort in engine.searches:
                wide = scale_effort(params, effort if widening else 1)
                if "nprobe" in wide:
                    wide["nprobe"] = min(int(wide["nprobe"] or 1), self.nlist)
                total += queries * (CALL_US + self.family.cost(wide, k, engine.rows / self.nlist))
            total += sum(engine.rows_compared) * COMPARED_US
        return total

    def repeats(self) -> int:
        """Number of queries that were repeated because they found too few results."""
        return sum(queries for engine in self.engines for queries, _, effort in engine.searches if effort >= WIDENING[0])
