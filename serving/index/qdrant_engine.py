"""A collection of Qdrant: points under the ids 0..rows-1, with one unnamed vector each, by dot product, over REST.

Qdrant takes no row masks: more is fetched, and few allowed rows are compared there, exactly, as it takes lists of ids.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from serving.circuit_breaker import Errors
from serving.contract.manifest import Scalar
from serving.index.collection import (
    Endpoint,
    OwnsClient,
    compare_in_calls,
    fetch_vectors,
    ids_missing,
    no_collection,
    other_dimension,
)  # fmt: skip
from serving.index.engine import Mask
from serving.index.merge import Neighbors, empty

MOST = 16_384
"""The greatest k: an answer of 1 MB. Qdrant itself sets no limit."""
BLOCK = 4096
"""Ids of one request."""
NUMBERS = 1_000_000
"""Numbers of one request, at most 22 bytes each as JSON; by default Qdrant takes requests of up to 32 MB."""
EF, MAX_EF = 64, 32_768
MAX_ID = 2**63 - 1
"""Qdrant's ids go beyond what a row can be."""
TRANSIENT: Errors = (ApiException, QdrantException, OSError)


class QdrantCollection(OwnsClient):
    """A collection, read-only."""

    takes_masks, most = False, MOST

    def __init__(self, endpoint: Endpoint, name: str, dim: int) -> None:
        self.name, self.dim, self.endpoint, self.client = name, dim, endpoint, connect(endpoint)
        self.rows = self._size()

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        ef = min(max(int(params.get("ef") or EF) * effort, k), MAX_EF)
        return self._ranked(xq, k, models.SearchParams(hnsw_ef=ef))

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        def compare(ids: np.ndarray) -> Neighbors:
            return self._ranked(xq, min(k, len(ids)), models.SearchParams(exact=True), ids)

        return compare_in_calls("qdrant", self.endpoint, compare, len(xq), positions, k, BLOCK)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return fetch_vectors(self._fetch, positions, self.dim, BLOCK)

    def _fetch(self, ids: list[int]) -> dict[int, Any]:
        found = self.client.retrieve(self.name, ids, with_payload=False, with_vectors=True)
        return {int(point.id): point.vector for point in found}

    def _ranked(self, xq: np.ndarray, k: int, params: models.SearchParams, ids: np.ndarray | None = None) -> Neighbors:
        """The k best of each query, among these ids (n,) where they are given; each query of a request names them again."""
        condition = None if ids is None else among(ids)
        step = queries_of_request(self.dim, 0 if ids is None else len(ids))
        found = empty(len(xq), k)
        for start in range(0, len(xq), step):
            asked = [
                models.QueryRequest(query=x, limit=k, params=params, filter=condition) for x in xq[start : start + step].tolist()
            ]
            for number, answer in enumerate(self.client.query_batch_points(self.name, asked), start):
                found.rows[number, : len(answer.points)] = [row_of(point.id) for point in answer.points]
                found.similarity[number, : len(answer.points)] = [point.score for point in answer.points]
        return found

    def _size(self) -> int:
        """The number of rows. Raises ContractError where the collection is gone, or has another dimension."""
        if not self.client.collection_exists(self.name):
            raise no_collection("qdrant", self.name)
        held = self.client.get_collection(self.name).config.params.vectors
        dim = held.size if isinstance(held, models.VectorParams) else 0
        if dim != self.dim:
            raise other_dimension(self.name, dim, self.dim)
        rows = self.client.count(self.name, exact=True).count
        if self.client.scroll(self.name, offset=rows, limit=1, with_payload=False)[0]:
            raise ids_missing(self.name, rows)
        return rows


def connect(endpoint: Endpoint) -> QdrantClient:
    """A client over REST. It asks nothing yet; its limits are whole seconds."""
    return QdrantClient(
        url=endpoint.address, api_key=endpoint.token or None, timeout=math.ceil(endpoint.timeout_s), check_compatibility=False
    )


def queries_of_request(dim: int, ids: int) -> int:
    """How many queries, each with so many ids, one request takes."""
    return max(1, NUMBERS // (dim + ids))


def row_of(point_id: int | str | UUID) -> int:
    """The row of an id; -1 for one that is none of ours, such as a UUID."""
    return point_id if isinstance(point_id, int) and point_id <= MAX_ID else -1


def among(ids: Sequence[int] | np.ndarray | range) -> models.Filter:
    """The condition that a point has one of these ids."""
    return models.Filter(must=[models.HasIdCondition(has_id=[int(n) for n in ids])])


open_collection: Callable[[Endpoint, str, int], QdrantCollection] = QdrantCollection
