"""Collections of Milvus: loaded from the start, since only what is loaded can be counted; sealed and indexed at the end."""

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.client.types import SegmentState

from serving.index.collection import MEASURE_S, Endpoint, OwnsClient
from serving.index.milvus_engine import count
from tasks.errors import VitrineError
from tasks.index.engine_collections import LOAD_LIMIT_S, wait_while

MAX_DIMENSIONS = 32_768
INDEXED_ROWS = 1024
"""By default Milvus makes no index of a segment of fewer rows."""


class MilvusCollections(OwnsClient):
    """Collections of the Milvus at the endpoint's address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.client = MilvusClient(uri=endpoint.address, token=endpoint.token, timeout=endpoint.timeout_s, dedicated=True)

    def create(self, name: str, dim: int, factory: str) -> None:
        if dim > MAX_DIMENSIONS:
            raise VitrineError(f"Milvus holds at most {MAX_DIMENSIONS} dimensions, and the encoder gives {dim}")
        if not self.client.has_collection(name):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
            self.client.create_collection(name, schema=schema, timeout=MEASURE_S)
        if not self.client.list_indexes(name):
            kind, params = _index_of(factory)
            index = self.client.prepare_index_params()
            index.add_index("embedding", index_type=kind, metric_type="IP", params=params)
            self.client.create_index(name, index, timeout=MEASURE_S)
        self.client.load_collection(name, timeout=MEASURE_S)

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        rows = [{"id": first + n, "embedding": vector} for n, vector in enumerate(vectors)]
        # An upsert notes a deletion for each row, which every search then passes by: only what may be there is written so.
        write = self.client.upsert if self.count(name, first, first + len(rows)) else self.client.insert
        write(name, rows, timeout=MEASURE_S)

    def count(self, name: str, first: int, stop: int) -> int:
        if not self.client.has_collection(name):
            return 0
        return count(self.client, name, f"id >= {first} and id < {stop}", MEASURE_S)

    def complete(self, name: str, factory: str, rows: int) -> None:
        self.client.flush(name, timeout=MEASURE_S)
        wait_while(lambda: self._not_indexed(name))
        self.client.load_collection(name, timeout=MEASURE_S)
        wait_while(lambda: self._not_loaded(name, rows), LOAD_LIMIT_S, look_s=0.2)

    def _not_indexed(self, name: str) -> str:
        left = int(self.client.describe_index(name, self.client.list_indexes(name)[0]).get("pending_index_rows", 0))
        return f"Milvus has not indexed {left} rows of collection {name}" if left else ""

    def _not_loaded(self, name: str, rows: int) -> str:
        """Why searches do not go over the finished index yet. They scan segments that are still to be loaded with theirs, many times
        slower and with another recall, which is not what a tuning is to measure."""
        loaded = self.client.list_loaded_segments(name, timeout=MEASURE_S)
        sealed = [s for s in loaded if s.state == SegmentState.Sealed and (s.index_id or s.num_rows < INDEXED_ROWS)]
        there = sum(s.num_rows for s in sealed)
        if len(sealed) == len(loaded) and there >= rows:
            return ""
        scanned = sum(s.num_rows for s in loaded) - there
        return f"Milvus has loaded {there} of {rows} rows of collection {name} with their index, and {scanned} without"

    def drop(self, name: str) -> None:
        if self.client.has_collection(name):
            for alias in self.client.list_aliases(name)["aliases"]:
                self.client.drop_alias(alias)
            self.client.drop_collection(name)

    def point(self, alias: str, name: str) -> None:
        if self.client.has_collection(alias):
            self.client.alter_alias(name, alias)
        else:
            self.client.create_alias(name, alias)


def _index_of(factory: str) -> tuple[str, dict[str, int]]:
    """The index type and its parameters, of a factory such as "HNSW,M=16,efConstruction=100"."""
    kind, *options = factory.split(",")
    return kind, {name: int(value) for name, _, value in (option.partition("=") for option in options)}


open_collections = MilvusCollections
