"""The work of a search, counted where it is done: short searches are repeated 8 and 64 times as wide, which no formula foresees."""

import copy

import numpy as np

from serving.contract.manifest import Scalar
from serving.index.engine import Engine, Mask
from serving.index.faiss_engine import scale_effort
from serving.index.merge import Neighbors
from serving.index.searcher import WIDENING, Searcher
from tasks.index.families import Family

CALL_US = 50.0
"""Microseconds that asking an engine costs whatever it holds (serving/index/faiss_engine.py, `together`)."""
COMPARED_US = 1 / 3
"""Microseconds for each row that is read and compared one by one (serving/index/searcher.py, `EXACT_ROWS`)."""


class Counted:
    """An engine that notes what it is asked: `searches` as (queries, k, effort), and the rows it `compared`.

    Safe to use from several threads, as an append is one step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, engine.rows
        self.searches: list[tuple[int, int, int]] = []
        self.compared: list[int] = []

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        self.searches.append((len(xq), k, effort))
        return self.engine.search(xq, k, mask, params, effort)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        self.compared.append(len(xq) * len(positions))
        return self.engine.nearest(xq, positions, k)


class Work:
    """What the engines of a searcher do. `searcher` is the same one over counted engines; the one it was made from is untouched."""

    def __init__(self, searcher: Searcher, family: Family, nlist: int) -> None:
        self.family, self.nlist = family, nlist
        self.searcher = copy.copy(searcher)
        self.searcher.groups = [copy.copy(part) for part in searcher.groups]
        self.engines = [Counted(part.engine) for part in self.searcher.groups]
        for part, engine in zip(self.searcher.groups, self.engines, strict=True):
            part.engine = engine

    def begin(self) -> None:
        """Forgets what was counted."""
        for engine in self.engines:
            engine.searches.clear()
            engine.compared.clear()

    def us(self, params: dict[str, Scalar], widening: bool = True) -> float:
        """What was counted, in microseconds, had it been asked with these parameters; without `widening`, and nothing been short."""
        total = 0.0
        for engine in self.engines:
            for queries, k, effort in engine.searches:
                wide = scale_effort(params, effort if widening else 1)
                if "nprobe" in wide:
                    wide["nprobe"] = min(int(wide["nprobe"] or 1), self.nlist)
                total += queries * (CALL_US + self.family.cost(wide, k, engine.rows / self.nlist))
            total += sum(engine.compared) * COMPARED_US
        return total

    def repeated(self) -> int:
        """How many times a query was searched again for having found too little."""
        return sum(queries for engine in self.engines for queries, _, effort in engine.searches if effort >= WIDENING[0])
