"""Qdrant's own engine, in this process: what a Qdrant server searches with, without the server and its network."""

from pathlib import Path

import numpy as np
import qdrant_edge as qdrant

from serving.contract.manifest import Scalar
from serving.index.engine import Mask
from serving.index.merge import Neighbors, pad, stack

BLOCK = 5000
"""Points an update."""


class QdrantEdge:
    """A shard of Qdrant with one HNSW index (m 16, ef_construct 100: Qdrant's defaults) over x (n, d) float32 unit vectors."""

    def __init__(self, x: np.ndarray, folder: Path) -> None:
        self.rows = len(x)
        graph = qdrant.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000)
        vectors = qdrant.EdgeVectorParams(size=x.shape[1], distance=qdrant.Distance.Dot)
        one_segment = qdrant.EdgeOptimizersConfig(default_segment_number=1, max_segment_size=2**40, indexing_threshold=1000)
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = qdrant.EdgeShard.create(
            str(folder), qdrant.EdgeConfig(vectors=vectors, hnsw_config=graph, optimizers=one_segment)
        )
        for first in range(0, len(x), BLOCK):
            points = [qdrant.Point(first + n, row.tolist(), None) for n, row in enumerate(x[first : first + BLOCK])]
            self.shard.update(qdrant.UpdateOperation.upsert_points(points))
        self.shard.optimize()
        indexed = self.shard.info().indexed_vectors_count
        if indexed < self.rows:
            raise RuntimeError(f"Qdrant has indexed {indexed} of {self.rows} vectors")

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        """The k nearest of xq (nq, d) by HNSW with `ef`, whatever the mask."""
        wide = qdrant.SearchParams(hnsw_ef=int(params["ef"]) * effort)
        return stack([self._nearest(row, k, wide) for row in xq], k)

    def _nearest(self, row: np.ndarray, k: int, wide: qdrant.SearchParams) -> Neighbors:
        found = self.shard.search(qdrant.SearchRequest(qdrant.Query.Nearest(row.tolist()), k, params=wide))
        similarity = np.array([[point.score for point in found]], np.float32)
        return pad(Neighbors(similarity, np.array([[point.id for point in found]], np.int64)), k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        raise NotImplementedError("the benchmark searches, and asks for no exact comparison")
