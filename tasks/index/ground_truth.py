"""Ground truth of the tuning queries by exact search over the encoder's vectors, cached per (snapshot, encoder, queries)."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.contract.segments import POSITION
from serving.index.merge import Neighbors
from serving.index.pictures import best_pictures
from serving.index.recall import DEPTH, recall
from tasks import storage
from tasks.index.vectors import most_pictures, shard_batches, shard_counts, shard_pictures
from tasks.progress import Progress


@dataclass(frozen=True)
class GroundTruth:
    """Exact nearest products, best first: `keys` (nq, depth) int64, -1: none; `similarity` float32 of the best picture, -inf: none."""

    keys: np.ndarray
    similarity: np.ndarray


def exact_truth(
    vectors_uri: str, shards: int, xq: np.ndarray, cache_uri: str | Path, content: str = "", depth: int = DEPTH
) -> GroundTruth:
    """Exact nearest products of unit queries xq (nq, d) among all shards' vectors, streamed; of each its best picture.

    Kept below `cache_uri` by what it follows from: the queries, and `content`, which names the snapshot and the encoder (without
    it, where the vectors lie). Asked for again, nothing is compared.
    """
    import faiss

    counts, _ = shard_counts(vectors_uri, shards)
    # A picture that could not be used in one run and can in another makes other vectors of the same snapshot: rows are counted.
    parts = f"{content or vectors_uri} {sum(counts)} {depth} {xq.shape}"
    name = hashlib.sha256(parts.encode() + np.ascontiguousarray(xq).tobytes()).hexdigest()
    uri = storage.join(str(cache_uri), f"truth-{name[:24]}.npz")
    if storage.exists(uri):
        with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as kept:
            return GroundTruth(kept["keys"], kept["similarity"])
    most = most_pictures(vectors_uri, shards)
    enough = depth * most  # so many pictures are of `depth` products at least
    heap = faiss.ResultHeap(len(xq), enough, keep_max=True)
    with Progress("compare exactly", sum(counts), "vectors") as progress:
        for shard in range(shards):
            pictures, start = shard_pictures(vectors_uri, [shard], [POSITION]), 0
            titles = None if pictures is None else pictures[POSITION].to_numpy() < 0
            for keys, vectors in shard_batches(vectors_uri, shard):
                progress.add(len(keys))
                if titles is not None:  # no photo finds these
                    shown = ~titles[start : start + len(keys)]
                    start, keys, vectors = start + len(keys), keys[shown], vectors[shown]
                if len(keys):
                    D, I = faiss.knn(xq, vectors, min(enough, len(keys)), metric=faiss.METRIC_INNER_PRODUCT)  # noqa: E741
                    heap.add_result(D, keys[I])
    heap.finalize()
    there = np.finfo(np.float32).min < heap.D
    keys, similarity = np.where(there, heap.I, -1), np.where(there, heap.D, -np.inf).astype(np.float32)
    if most > 1:
        best = best_pictures(Neighbors(similarity, keys, pictures=np.zeros(keys.shape, np.int16)), depth)
        keys, similarity = best.rows, best.similarity
    truth = GroundTruth(keys, similarity)
    content_bytes = io.BytesIO()
    np.savez(content_bytes, keys=truth.keys, similarity=truth.similarity)
    storage.write_bytes(uri, content_bytes.getvalue())
    return truth


def recall_against(keys: np.ndarray, truth: GroundTruth, k: int) -> float:
    """Mean share of the true top k among found keys (nq, any) int64, -1 for none; ties with the k-th count."""
    return recall(keys, Neighbors(truth.similarity, truth.keys), k)
