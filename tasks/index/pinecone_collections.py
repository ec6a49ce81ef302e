"""Collections in Pinecone: namespaces of one index. Pinecone counts late: what must be exact is counted by listing ids."""

import numpy as np

from serving.index.collection import Endpoint, OwnsClient
from serving.index.pinecone_engine import connect, ids_of, rows_of
from tasks.errors import VitrineError
from tasks.index.engine_collections import requests, wait_while

NUMBERS, MOST_ROWS = 80_000, 1000
"""Numbers and rows of one request; Pinecone takes 2 MB and 1000 rows, and a number of a unit vector is 21 bytes of JSON on average."""
PREFIX_ROWS, PAGE = 1000, 100
COUNT_LIMIT_S = 3600.0
"""How long its count may lag behind what was written."""
TOLERANCE = 1e-3
"""By how much a score may differ from the dot product of float32."""


class PineconeCollections(OwnsClient):
    """Namespaces of the index at the endpoint's address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.client = connect(endpoint)

    def create(self, name: str, dim: int, factory: str) -> None:
        held = self.client.describe_index_stats().dimension
        if held != dim:
            raise VitrineError(
                f"the index of Pinecone has dimension {held}, and the encoder gives {dim}: make one of dimension {dim}"
            )
        if rows_of(self.client, name) is None:
            self.client.create_namespace(name=name)

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        for rows, block in requests(first, vectors, rows_of_request(vectors.shape[1])):
            self.client.upsert(vectors=list(zip(ids_of(rows), block, strict=True)), namespace=name)

    def count(self, name: str, first: int, stop: int) -> int:
        if rows_of(self.client, name) is None:
            return 0
        least, most, total = *ids_of([first, stop]), 0
        for thousand in range(first // PREFIX_ROWS, -(-stop // PREFIX_ROWS)):
            prefix = ids_of([thousand * PREFIX_ROWS])[0][:-3]
            for page in self.client.list(prefix=prefix, limit=PAGE, namespace=name):
                total += sum(least <= (item.id or "") < most for item in page.vectors)
        return total

    def complete(self, name: str, factory: str, rows: int) -> None:
        wait_while(lambda: self._not_counted(name, rows), COUNT_LIMIT_S)
        self._check_metric(name)

    def drop(self, name: str) -> None:
        if rows_of(self.client, name) is not None:
            self.client.delete_namespace(name=name)

    def point(self, alias: str, name: str) -> None:
        """Nothing: Pinecone has no aliases of namespaces."""

    def _not_counted(self, name: str, rows: int) -> str:
        counted = rows_of(self.client, name)
        return "" if counted == rows else f"Pinecone counts {counted} of {rows} rows of namespace {name}"

    def _check_metric(self, name: str) -> None:
        """Raises VitrineError unless a score is the dot product."""
        (first,) = ids_of([0])
        for held in self.client.fetch(ids=[first], namespace=name).vectors.values():
            x = np.array(held.values, np.float32)
            for match in self.client.query(top_k=3, vector=held.values, namespace=name, include_values=True).matches:
                if abs(match.score - float(x @ np.array(match.values, np.float32))) > TOLERANCE:
                    raise VitrineError("the scores of the index of Pinecone are no dot products: make one of metric dotproduct")


def rows_of_request(dim: int) -> int:
    """How many vectors of this dimension one request takes."""
    return max(1, min(MOST_ROWS, NUMBERS // dim))


open_collections = PineconeCollections
