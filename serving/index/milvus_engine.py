"""A collection of Milvus: `id` int64 and `embedding` float32 (d), under an index by inner product.

Milvus takes no row masks: more is fetched, up to its limit of 16,384, and few allowed rows are fetched by id and compared here.
Which rows a filter allows is in serving/ranking/filters.py, how much more is fetched in unmasked.py.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from grpc import RpcError
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from serving.circuit_breaker import Errors
from serving.contract.manifest import Scalar
from serving.index.collection import (
    MEASURE_S,
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

MOST = 16_384
"""Milvus's greatest k."""
BLOCK = 4096
"""Vectors of one answer: 8 MB at dimension 512; Milvus gives at most 100 MB."""
EF, NPROBE = 64, 16
"""Defaults where a manifest sets none."""
MAX_EF, MAX_NPROBE = 32_768, 65_536
TRANSIENT: Errors = (MilvusException, RpcError, OSError)


class MilvusCollection(OwnsClient):
    """A loaded collection, read-only. Searches see whatever was there when it was opened, as nothing is written any more."""

    takes_masks, most = False, MOST

    def __init__(self, endpoint: Endpoint, name: str, dim: int) -> None:
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs the traceback of every error that it raises
        self.name, self.dim, self.timeout_s, self.endpoint = name, dim, endpoint.timeout_s, endpoint
        self.client = MilvusClient(uri=endpoint.address, token=endpoint.token, timeout=endpoint.timeout_s, dedicated=True)
        self.rows = self._size()

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        wide = {
            "ef": min(max(int(params.get("ef") or EF) * effort, k), MAX_EF),
            "nprobe": min(int(params.get("nprobe") or NPROBE) * effort, MAX_NPROBE),
        }
        answers = self.client.search(
            self.name, data=list(xq), limit=k, search_params={"metric_type": "IP", "params": wide}, timeout=self.timeout_s,
            consistency_level="Eventually",
        )  # fmt: skip
        found = empty(len(xq), k)
        for number, hits in enumerate(answers):
            found.rows[number, : len(hits)] = [hit["id"] for hit in hits]
            found.similarity[number, : len(hits)] = [hit["distance"] for hit in hits]
        return found

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        return compare_in_calls("milvus", self.endpoint, by_vectors(xq, self.vectors), len(xq), positions, k, BLOCK)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return fetch_vectors(self._fetch, positions, self.dim, BLOCK)

    def _fetch(self, ids: list[int]) -> dict[int, Sequence[float]]:
        found = self.client.query(
            self.name, ids=ids, output_fields=["id", "embedding"], timeout=self.timeout_s, consistency_level="Eventually"
        )
        return {row["id"]: row["embedding"] for row in found}

    def _size(self) -> int:
        """The number of rows. Raises ContractError where the collection is gone, not loaded, or has another dimension."""
        if not self.client.has_collection(self.name, timeout=self.timeout_s):
            raise no_collection("milvus", self.name)
        fields = {f["name"]: f for f in self.client.describe_collection(self.name, timeout=self.timeout_s)["fields"]}
        dim = int(fields["embedding"]["params"]["dim"])
        if dim != self.dim:
            raise other_dimension(self.name, dim, self.dim)
        rows = count(self.client, self.name, "id >= 0", MEASURE_S)
        if count(self.client, self.name, f"id >= {rows}", MEASURE_S):
            raise ids_missing(self.name, rows)
        return rows


def count(client: MilvusClient, name: str, condition: str, timeout_s: float) -> int:
    """The exact number of rows that meet a condition, whatever was written just now."""
    found = client.query(name, filter=condition, output_fields=["count(*)"], timeout=timeout_s, consistency_level="Strong")
    return int(found[0]["count(*)"])


open_collection: Callable[[Endpoint, str, int], MilvusCollection] = MilvusCollection
