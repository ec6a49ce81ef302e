"""A shop of made-up products of any size: a snapshot and the shards' vectors as the pipeline leaves them, never all in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.contract.files import atomic_write
from serving.contract.keys import product_keys, shard_of
from tasks.catalog.snapshot import Snapshot, read_snapshot, take_snapshot
from tests.benchmarks.photo_vectors import PhotoVectors
from tests.benchmarks.stages import Stages
from tests.benchmarks.vectors import Vectors

BLOCK = 50_000
QUERY_SEED, SHARD_SEED = 11, 1000


@dataclass(frozen=True)
class MadeShop:
    """Where everything lies; `shards` shards of dimension `dim`."""

    folder: Path
    snapshot: Snapshot
    vectors_uri: str
    dim: int
    shards: int


def make_shop(folder: Path, rows: int, dim: int, preset: str, shards: int, stages: Stages) -> MadeShop:
    """`rows` products below `folder`; each shard's file is written whole, in blocks, from a seed of its own."""
    snapshot = stages.run("snapshot", lambda: _snapshot(folder, rows))
    for shard in range(shards):
        stages.run(f"generate shard {shard}", lambda s=shard: _generate(folder, snapshot, dim, preset, s, shards))
    return MadeShop(folder, read_snapshot(snapshot), str(folder / "vectors"), dim, shards)


def made_queries(dim: int, preset: str, count: int) -> np.ndarray:
    """Queries (count, dim), perturbed and never from the base."""
    return world_of(dim, preset).seeded(QUERY_SEED).queries(count)


def world_of(dim: int, preset: str) -> Vectors | PhotoVectors:
    """Made-up vectors of a preset, or those of a file that photo_vectors made. Raises ValueError when its dimension is another."""
    if not preset.endswith(".npz"):
        return Vectors(dim, preset)
    photos = PhotoVectors(Path(preset))
    if photos.dim != dim:
        raise ValueError(f"{preset} holds vectors of {photos.dim} numbers: --dim {photos.dim}")
    return photos


def _snapshot(folder: Path, rows: int) -> str:
    catalog = folder / "catalog"
    catalog.mkdir(parents=True, exist_ok=True)
    ids = [f"P{i:08d}" for i in range(rows)]
    pacsv.write_csv(pa.table({"product_id": ids, "title": ids, "image": ids}), catalog / "products.csv")
    del ids
    uri = take_snapshot(str(catalog), str(folder / "snapshots"), "made").uri
    (catalog / "products.csv").unlink()
    return uri


def _generate(folder: Path, snapshot: str, dim: int, preset: str, shard: int, shards: int) -> int:
    rows = read_snapshot(snapshot).rows
    keys = product_keys(f"P{i:08d}" for i in range(rows))
    keys = np.sort(keys[shard_of(keys, shards) == shard])
    world = world_of(dim, preset).seeded(SHARD_SEED + shard)
    schema = pa.schema([("key", pa.int64()), ("image_sha256", pa.binary(32)), ("vector", pa.list_(pa.float16(), dim))])
    with (
        atomic_write(folder / "vectors" / f"shard={shard}" / "part-00000.parquet") as path,
        pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer,
    ):
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            vectors = world.base(len(block)).astype(np.float16)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            images = pa.array([b"\0" * 32] * len(block), pa.binary(32))
            writer.write_table(pa.table([pa.array(block), images, column], schema=schema))
    return len(keys)
