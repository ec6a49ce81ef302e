"""Collections of Weaviate. Their names begin with a capital letter there: Vitrine_…"""

import numpy as np
from weaviate.classes.config import Configure, VectorDistances
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter

from serving.index.collection import Endpoint, OwnsClient
from serving.index.weaviate_engine import BLOCK, MOST, VECTOR, connect, ids_of
from tasks.errors import VitrineError
from tasks.index.engine_collections import requests, wait_while

NUMBERS = 1_000_000
"""Numbers of one request: 4 MB."""


class WeaviateCollections(OwnsClient):
    """Collections of the Weaviate at the endpoint's address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.client = connect(endpoint)

    def create(self, name: str, dim: int, factory: str) -> None:
        if not self.client.collections.exists(name):
            options = {key: int(value) for key, value in (part.split("=") for part in factory.split(",")[1:])}
            index = Configure.VectorIndex.hnsw(
                distance_metric=VectorDistances.DOT, dynamic_ef_min=1, dynamic_ef_max=MOST, dynamic_ef_factor=1, **options
            )
            made = Configure.Vectors.self_provided(name=VECTOR, vector_index_config=index)
            self.client.collections.create(name, vector_config=made)

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        held = self.client.collections.use(name)
        for rows, block in requests(first, vectors, max(1, NUMBERS // vectors.shape[1])):
            objects = [DataObject({}, uuid=n, vector={VECTOR: x}) for n, x in zip(ids_of(rows), block, strict=True)]
            done = held.data.insert_many(objects)
            if done.has_errors:
                raise VitrineError(f"Weaviate took {len(block) - len(done.errors)} of {len(block)} vectors: {done.errors}"[:500])

    def count(self, name: str, first: int, stop: int) -> int:
        if not self.client.collections.exists(name):
            return 0
        held, total = self.client.collections.use(name), 0
        for start in range(first, stop, BLOCK):
            mine = Filter.by_id().contains_any(ids_of(range(start, min(start + BLOCK, stop))))
            total += held.aggregate.over_all(filters=mine, total_count=True).total_count or 0
        return total

    def complete(self, name: str, factory: str, rows: int) -> None:
        wait_while(lambda: self._not_indexed(name))

    def drop(self, name: str) -> None:
        if self.client.collections.exists(name):
            for alias in self.client.alias.list_all(collection=name.capitalize()):
                self.client.alias.delete(alias_name=alias)
            self.client.collections.delete(name)

    def point(self, alias: str, name: str) -> None:
        alias, name = alias.capitalize(), name.capitalize()
        if self.client.alias.exists(alias_name=alias):
            self.client.alias.update(alias_name=alias, new_target_collection=name)
        else:
            self.client.alias.create(alias_name=alias, target_collection=name)

    def _not_indexed(self, name: str) -> str:
        """What waits to be indexed, where Weaviate does so in the background (ASYNC_INDEXING)."""
        nodes = self.client.cluster.nodes(collection=name, output="verbose")
        queued = sum(shard.vector_queue_length for node in nodes for shard in node.shards or [])
        return f"Weaviate has not indexed {queued} vectors of collection {name}" if queued else ""


open_collections = WeaviateCollections
