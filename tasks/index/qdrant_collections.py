"""Collections of Qdrant: filled without an index, which is built at the end. (VITRINE_ENGINE=qdrant)"""

import numpy as np
from qdrant_client import models

from serving.index.collection import Endpoint, OwnsClient
from serving.index.qdrant_engine import BLOCK, NUMBERS, among, connect
from tasks.errors import VitrineError
from tasks.index.engine_collections import requests, wait_while

MAX_DIMENSIONS = 65_536
INDEXED_KB = 1000
"""A segment with more vectors than this is indexed; smaller ones are compared one by one."""
LOOK_S, LOOKS = 0.5, 4
"""A collection is finished when it says so in as many looks: right after the change of its settings it has not begun yet."""


class QdrantCollections(OwnsClient):
    """Collections of the Qdrant at the endpoint's address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.client = connect(endpoint)

    def create(self, name: str, dim: int, factory: str) -> None:
        if dim > MAX_DIMENSIONS:
            raise VitrineError(f"Qdrant holds at most {MAX_DIMENSIONS} dimensions, and the encoder gives {dim}")
        if not self.client.collection_exists(name):
            self.client.create_collection(
                name, vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT),
                hnsw_config=index_of(factory), optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
            )  # fmt: skip

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        for rows, block in requests(first, vectors, max(1, NUMBERS // vectors.shape[1])):
            self.client.upsert(name, models.Batch(ids=[*rows], vectors=block), wait=True)

    def count(self, name: str, first: int, stop: int) -> int:
        if not self.client.collection_exists(name):
            return 0
        blocks = [range(start, min(start + BLOCK, stop)) for start in range(first, stop, BLOCK)]
        return sum(self.client.count(name, among(ids), exact=True).count for ids in blocks)

    def complete(self, name: str, factory: str, rows: int) -> None:
        self.client.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=INDEXED_KB))
        wait_while(lambda: self._not_indexed(name), look_s=LOOK_S, looks=LOOKS)

    def _not_indexed(self, name: str) -> str:
        held = self.client.get_collection(name)
        why = f"Qdrant has not indexed collection {name}: it is {held.status.value}, {held.optimizer_status},"
        if held.status == models.CollectionStatus.RED:
            raise VitrineError(f"{why} and does not go on")
        return "" if held.status == models.CollectionStatus.GREEN else why

    def drop(self, name: str) -> None:
        if self.client.collection_exists(name):
            self.client.delete_collection(name)

    def point(self, alias: str, name: str) -> None:
        there = any(held.alias_name == alias for held in self.client.get_aliases().aliases)
        gone = [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))] if there else []
        made = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))
        self.client.update_collection_aliases([*gone, made])


def index_of(factory: str) -> models.HnswConfigDiff:
    """The index of a factory such as "HNSW,m=16,ef_construct=100"."""
    return models.HnswConfigDiff.model_validate(dict(option.split("=") for option in factory.split(",")[1:]))


open_collections = QdrantCollections
