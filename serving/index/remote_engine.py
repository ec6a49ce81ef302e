"""Engine over a collection of another system: over-fetching where that takes no row masks, and calls through a circuit breaker.

Deltas and tombstones are merged with it in searcher.py.
"""

import numpy as np

from serving.circuit_breaker import CircuitBreaker
from serving.contract.files import ContractError
from serving.contract.manifest import Scalar
from serving.contract.provenance import EngineRef
from serving.index.collection import Collection, Endpoint, engine_module, open_collection
from serving.index.engine import EngineUnavailable, FilterTooSlow, Mask
from serving.index.merge import Neighbors, empty
from serving.index.unmasked import best_allowed, over_fetch


class RemoteEngine:
    """Engine over a collection (serving/index/collection.py). Raises EngineUnavailable while it does not answer; FilterTooSlow."""

    def __init__(self, collection: Collection, breaker: CircuitBreaker) -> None:
        self.collection, self.breaker, self.rows = collection, breaker, collection.rows

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        wanted = k if mask is None or self.collection.takes_masks else over_fetch(self.rows, k, mask.count, effort)
        fetched = min(wanted, self.rows, self.collection.most)
        found = self.breaker(lambda: self.collection.search(xq, fetched, mask, params, effort))
        return best_allowed(self._own(found), k, mask)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        if not len(positions):
            return empty(len(xq), 0)
        found = self.breaker(lambda: self.collection.nearest(xq, positions, min(k, len(positions))))
        return best_allowed(self._own(found), min(k, len(positions)), None)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 at these positions."""
        return self.breaker(lambda: self.collection.vectors(positions))

    def _own(self, found: Neighbors) -> Neighbors:
        """What was found, without rows that somebody else wrote into the collection since it was opened."""
        foreign = (found.rows < 0) | (found.rows >= self.rows)
        return Neighbors(found.similarity, np.where(foreign, -1, found.rows)) if foreign.any() else found

    def part(self, first: int) -> "EngineRows":
        """The rows of one segment, from position `first` on."""
        return EngineRows(self, first)


class EngineRows:
    """The rows of one segment in an engine, from its position `first` on."""

    def __init__(self, engine: RemoteEngine, first: int) -> None:
        self.engine, self.first = engine, first

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 at these positions of the segment."""
        return self.engine.vectors(positions + self.first)


def connect(ref: EngineRef, endpoint: Endpoint, dim: int) -> RemoteEngine:
    """The engine over the collection that a manifest names.

    Raises ContractError where it is gone, or holds another number of rows or another dimension; EngineUnavailable where the engine
    does not answer.
    """
    transient, answers = engine_module(ref.name).TRANSIENT, (ContractError, FilterTooSlow)
    breaker = CircuitBreaker(ref.name, EngineUnavailable, transient, answers)
    collection = breaker(lambda: open_collection(ref.name, endpoint, ref.collection, dim))
    if collection.rows != ref.rows:
        raise ContractError(
            f"{ref.name} holds {collection.rows} rows in collection {ref.collection}, where the manifest says {ref.rows}"
        )
    return RemoteEngine(collection, breaker)
