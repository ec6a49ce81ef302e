"""The vectors of one shard, as the embedding step left them: Parquet sorted by key."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from serving.contract.segments import unit_float32
from tasks import storage

BATCH_ROWS = 50_000


def shard_uri(vectors_uri: str, shard: int) -> str:
    return storage.join(vectors_uri, f"shard={shard}")


def shard_batches(vectors_uri: str, shard: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys (n,) int64 and unit vectors (n, d) float32 of a shard, in order of key, at most 50,000 rows at a time."""
    uri = shard_uri(vectors_uri, shard)
    fs, _ = storage.filesystem(uri)
    files = [f.removeprefix("s3://") for f in storage.listing(uri, ".parquet")]
    for batch in pads.dataset(files, filesystem=fs).to_batches(columns=["key", "vector"], batch_size=BATCH_ROWS):
        if batch.num_rows:
            yield batch["key"].to_numpy(), unit_float32(matrix(batch["vector"]))


def matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """A column of fixed-size lists as an array (n, d), without a copy."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
