"""A collection in Pinecone: a namespace of one index, which the shop made with metric dotproduct and the encoder's dimension.

The address is the index's host, the token its API key. Pinecone takes no row masks, no parameters of a search, and gives vectors only
by their ids: few allowed rows are fetched and compared here.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pinecone import NotFoundError
from pinecone.index import Index

from serving.circuit_breaker import Errors
from serving.contract.manifest import Scalar
from serving.index.collection import (
    Endpoint,
    OwnsClient,
    by_vectors,
    compare_in_calls,
    fetch_vectors,
    ids_missing,
    no_collection,
    other_dimension,
)  # fmt: skip
from serving.index.engine import Mask
from serving.index.merge import Neighbors, empty

MOST = 10_000
"""Pinecone's greatest top_k."""
BLOCK = 200
"""Ids of one request, which are part of its URL."""
DIGITS = 10
TRANSIENT: Errors = ()
"""Its client makes three more attempts by itself, and cannot be told not to."""


class PineconeCollection(OwnsClient):
    """A namespace, read-only."""

    takes_masks, most = False, MOST

    def __init__(self, endpoint: Endpoint, name: str, dim: int) -> None:
        self.name, self.dim, self.endpoint, self.client = name, dim, endpoint, connect(endpoint)
        self.rows = self._size()

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        found, wide = empty(len(xq), k), min(k * effort, MOST)
        for number, x in enumerate(xq.tolist()):
            matches = self.client.query(top_k=wide, vector=x, namespace=self.name).matches[:k]
            found.rows[number, : len(matches)] = [row_of(match.id) for match in matches]
            found.similarity[number, : len(matches)] = [match.score for match in matches]
        return found

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        return compare_in_calls("pinecone", self.endpoint, by_vectors(xq, self.vectors), len(xq), positions, k, BLOCK)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return fetch_vectors(self._fetch, positions, self.dim, BLOCK)

    def _fetch(self, ids: list[int]) -> dict[int, Any]:
        found = self.client.fetch(ids=ids_of(ids), namespace=self.name).vectors
        return {row_of(name): held.values for name, held in found.items()}

    def _size(self) -> int:
        """The number of rows. Raises ContractError where the namespace is gone, lacks ids, or has another dimension."""
        rows = rows_of(self.client, self.name)
        if rows is None:
            raise no_collection("pinecone", self.name)
        dim = self.client.describe_index_stats().dimension
        if dim != self.dim:
            raise other_dimension(self.name, dim, self.dim)
        if set(self._fetch([0, max(rows - 1, 0), rows])) != ({0, rows - 1} if rows else set()):
            raise ids_missing(self.name, rows)
        return rows


def connect(endpoint: Endpoint) -> Index:
    """A client of the index at the endpoint's address; it asks nothing yet."""
    return Index(host=endpoint.address, api_key=endpoint.token or "none", timeout=endpoint.timeout_s)


def rows_of(index: Index, name: str) -> int | None:
    """The number of rows of a namespace, as Pinecone counts them, which may be behind; None where there is none."""
    try:
        return int(index.describe_namespace(name=name).record_count)
    except NotFoundError:
        return None


def ids_of(rows: Iterable[int]) -> list[str]:
    """Pinecone's ids of rows: ten digits, so that a thousand rows share a prefix."""
    return [f"{n:0{DIGITS}d}" for n in rows]


def row_of(name: str) -> int:
    """The row of an id; -1 for one that is none of ours."""
    return int(name) if len(name) == DIGITS and name.isdecimal() else -1


open_collection: Callable[[Endpoint, str, int], PineconeCollection] = PineconeCollection
