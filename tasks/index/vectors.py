"""Reads the shard vectors of an embedding run: Parquet sorted by key, and by position where products have several pictures."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from serving.contract.palette import PALETTE, PALETTE_TYPE
from serving.contract.segments import PICTURES, POSITION, unit_float32
from tasks import storage
from tasks.errors import VitrineError

BATCH_ROWS = 50_000


def shard_uri(vectors_uri: str, shard: int) -> str:
    return storage.join(vectors_uri, f"shard={shard}")


def shard_batches(vectors_uri: str, shard: int, unit: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys (n,) int64 and vectors (n, d) of a shard, in order of key, up to 50,000 rows per batch.

    Unit float32 vectors, or with `unit` false the stored float16 ones as they are.
    """
    uri = shard_uri(vectors_uri, shard)
    fs, _ = storage.filesystem(uri)
    files = [f.removeprefix("s3://") for f in storage.list_files(uri, ".parquet")]
    for file in files:  # one after the other: reading ahead would hold several parts in memory
        for batch in pads.dataset(file, filesystem=fs).to_batches(
            columns=["key", "vector"], batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=0
        ):
            if batch.num_rows:
                vectors = matrix(batch["vector"])
                yield batch["key"].to_numpy(), unit_float32(vectors) if unit else vectors


def shard_palettes(vectors_uri: str, shards: Iterable[int]) -> pa.ChunkedArray | None:
    """Palettes of shards, concatenated, each in order of key; None when written without palettes."""
    parts: list[pa.ChunkedArray] = []
    for uri in (uri for shard in shards for uri in storage.list_files(shard_uri(vectors_uri, shard), ".parquet")):
        with storage.open_input(uri) as stream:
            file = pq.ParquetFile(stream)
            if PALETTE not in file.schema_arrow.names:
                return None
            parts.append(file.read([PALETTE])[PALETTE])
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], PALETTE_TYPE)


def shard_pictures(vectors_uri: str, shards: Iterable[int], columns: Sequence[str] = PICTURES.names) -> pa.Table | None:
    """Which picture of which product each vector of shards is of (`columns` of PICTURES), in their order; None where each is of a
    main picture."""
    files = [uri for shard in shards for uri in storage.list_files(shard_uri(vectors_uri, shard), ".parquet")]
    names = {uri: _schema(uri).names for uri in files}
    if not any(POSITION in there for there in names.values()):
        return None
    parts = []
    for uri in files:
        there = [n for n in ("key", POSITION, "image_sha256") if n in names[uri]]
        part = storage.read_table(uri, there).rename_columns({"key": "product"})
        if POSITION not in part.column_names:
            part = part.append_column(POSITION, pa.array(np.zeros(len(part), np.int16)))
        parts.append(part.select(columns).cast(pa.schema([PICTURES.field(n) for n in columns])))
    table = pa.concat_tables(parts).combine_chunks()
    return table if pc.any(pc.not_equal(table[POSITION], 0)).as_py() else None


def _schema(uri: str) -> pa.Schema:
    with storage.open_input(uri) as stream:
        return pq.read_schema(stream)


def most_pictures(vectors_uri: str, shards: int) -> int:
    """The most vectors that one product has; 1 without reading anything where none has several."""
    most = 1
    for shard in range(shards):
        pictures = shard_pictures(vectors_uri, [shard], ["product", POSITION])
        if pictures is not None:
            most = max(most, int(np.unique(pictures["product"].to_numpy(), return_counts=True)[1].max()))
    return most


def shard_counts(vectors_uri: str, shards: int) -> tuple[list[int], int]:
    """Number of vectors per shard, and their dimension (0 without vectors)."""
    counts, dim = [], 0
    for shard in range(shards):
        total = 0
        for uri in storage.list_files(shard_uri(vectors_uri, shard), ".parquet"):
            with storage.open_input(uri) as stream:
                file = pq.ParquetFile(stream)
                total += file.metadata.num_rows
                dim = file.schema_arrow.field("vector").type.list_size
        counts.append(total)
    return counts, dim


def sample_vectors(vectors_uri: str, shards: int, count: int, seed: int) -> np.ndarray:
    """A random sample of about `count` validated vectors (n, d) float32 from all shards, by seed."""
    counts, dim = shard_counts(vectors_uri, shards)
    share = min(1.0, count / max(sum(counts), 1))
    rng = np.random.default_rng(seed)
    parts = [np.zeros((0, dim), np.float32)]
    for shard in range(shards):
        for keys, stored in shard_batches(vectors_uri, shard, unit=False):
            chosen = rng.random(len(stored)) < share
            vectors = unit_float32(stored[chosen])
            check_vectors(vectors, keys[chosen], dim)
            parts.append(vectors)
    return np.concatenate(parts)


def check_vectors(vectors: np.ndarray, keys: np.ndarray, dim: int) -> None:
    """Raises VitrineError for a wrong dimension, NaN, or a zero vector, naming the first key."""
    if vectors.shape[1] != dim:
        raise VitrineError(
            f"vectors of dimension {vectors.shape[1]}, the template has {dim}: embeddings of two encoders are mixed"
        )
    bad = ~np.isfinite(vectors).all(axis=1) | (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-2)
    if bad.any():
        raise VitrineError(f"{int(bad.sum())} vectors are NaN or not of unit length, the first that of key {keys[bad][0]}")


def matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """A column of fixed-size lists as an array (n, d), zero-copy."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
