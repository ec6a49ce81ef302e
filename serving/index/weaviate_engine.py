"""A collection of Weaviate: objects without properties under ids that count up, one named vector each, by dot product.

Weaviate takes no row masks, and no `ef` with a search: its dynamic one is as large as what is fetched, so that is at least `ef`.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import numpy as np
import weaviate
from grpc import RpcError
from weaviate.classes.init import AdditionalConfig, Timeout
from weaviate.classes.query import MetadataQuery
from weaviate.config import GrpcConfig
from weaviate.exceptions import WeaviateBaseError

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
"""Weaviate's greatest limit, by default (QUERY_MAXIMUM_RESULTS)."""
BLOCK, EF = 2000, 64
VECTOR = "embedding"
FIRST_ID = 0x76697472_696E_4000_8000_000000000000
"""The id of row 0: ids of Weaviate are UUIDs."""
MAX_ROWS = 2**48
"""What the last group of a UUID counts up to."""
CHANNEL = {"methodConfig": [{"name": [{}], "waitForReady": True}]}
"""Where Weaviate is away a call ends with its time limit; else the client itself would repeat it for a minute."""
TRANSIENT: Errors = (WeaviateBaseError, RpcError, OSError)


class WeaviateCollection(OwnsClient):
    """A collection, read-only."""

    takes_masks, most = False, MOST

    def __init__(self, endpoint: Endpoint, name: str, dim: int) -> None:
        self.name, self.dim, self.endpoint, self.client = name, dim, endpoint, connect(endpoint)
        self.held = self.client.collections.use(name)
        self.rows = self._size()

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        found = empty(len(xq), k)
        wide = min(max(int(params.get("ef") or EF) * effort, k), MOST)
        for number, x in enumerate(xq.tolist()):
            objects = self.held.query.near_vector(
                x, limit=wide, target_vector=VECTOR, return_metadata=MetadataQuery(distance=True)
            ).objects[:k]
            found.rows[number, : len(objects)] = [row_of(o.uuid) for o in objects]
            found.similarity[number, : len(objects)] = [-(o.metadata.distance or 0.0) for o in objects]
        return found

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        return compare_in_calls("weaviate", self.endpoint, by_vectors(xq, self.vectors), len(xq), positions, k, BLOCK)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return fetch_vectors(self._fetch, positions, self.dim, BLOCK)

    def _fetch(self, ids: list[int]) -> dict[int, Any]:
        found = self.held.query.fetch_objects_by_ids(ids_of(ids), limit=len(ids), include_vector=True).objects
        return {row_of(o.uuid): o.vector[VECTOR] for o in found}

    def _size(self) -> int:
        """The number of rows. Raises ContractError where the collection is gone, lacks ids, or has another dimension."""
        if not self.client.collections.exists(self.name):
            raise no_collection("weaviate", self.name)
        rows = self.held.aggregate.over_all(total_count=True).total_count or 0
        ends = self._fetch([0, max(rows - 1, 0), rows])
        if set(ends) != ({0, rows - 1} if rows else set()):
            raise ids_missing(self.name, rows)
        if dims := {len(vector) for vector in ends.values()} - {self.dim}:
            raise other_dimension(self.name, dims.pop(), self.dim)
        return rows


def connect(endpoint: Endpoint) -> weaviate.WeaviateClient:
    """An open client. An address is http(s)://host:port, with ?grpc=host:port where gRPC is not at port 50051 of the same host."""
    http = urlsplit(endpoint.address)
    secure = http.scheme == "https"
    grpc = urlsplit("//" + parse_qs(http.query).get("grpc", [http.hostname or ""])[0])
    seconds = endpoint.timeout_s
    options = [("grpc.service_config", json.dumps(CHANNEL)), ("grpc.max_reconnect_backoff_ms", 1000)]
    return weaviate.connect_to_custom(
        http.hostname or "", http.port or (443 if secure else 8080), secure, grpc.hostname or "", grpc.port or 50051, secure,
        auth_credentials=endpoint.token or None, skip_init_checks=True,
        additional_config=AdditionalConfig(
            timeout=Timeout(query=seconds, insert=seconds, init=seconds), grpc_config=GrpcConfig(channel_options=options)
        ),
    )  # fmt: skip


def ids_of(rows: Iterable[int]) -> list[UUID]:
    """Weaviate's ids of rows."""
    return [UUID(int=FIRST_ID + n) for n in rows]


def row_of(uuid: UUID) -> int:
    """The row of an id; -1 for one that is none of ours."""
    row = uuid.int - FIRST_ID
    return row if 0 <= row < MAX_ROWS else -1


open_collection: Callable[[Endpoint, str, int], WeaviateCollection] = WeaviateCollection
