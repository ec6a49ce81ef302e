"""The embedding store at the size of a large catalogue: write, "what is new", and the vectors by shard; time and peak memory.

    python -m tests.benchmarks.bench_store [--rows 10000000] [--dim 512] [--shards 4] [--out build/bench]

Needs about 2.3 times the vectors' size on disk (10M x 512 float16: 23 GB), removed at the end. Each stage runs in a process of its
own. "plain" is the same number of bytes written to files, or read and summed by sha256, without Parquet or looking anything up.
Prints a table and writes store.json.
"""

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from serving.contract.palette import PALETTE_TYPE
from serving.contract.segments import fixed_column
from tasks import storage
from tasks.embed.chunks import images_to_embed
from tasks.embed.shard_vectors import write_shards
from tasks.embed.store import SHA_TYPE, EmbeddingStore, vector_column
from tests.benchmarks.peak import measured

CHUNK = 2048
NEW_SHARE = 0.01
NEEDED = 2.3


def checksums(folder: str, first: int, count: int) -> pa.Array:
    """Made-up image checksums first…first + count, always the same."""
    words = np.load(f"{folder}/checksums.npy", mmap_mode="r")[first : first + count]
    return fixed_column(np.ascontiguousarray(words).view(np.uint8).reshape(count, SHA_TYPE.byte_width))


def write(folder: str, rows: int, dim: int) -> int:
    """Unit vectors: one random block, turned a little further for every chunk."""
    store = EmbeddingStore(f"{folder}/store", dim)
    block = np.random.default_rng(0).standard_normal((CHUNK, dim)).astype(np.float32)
    block = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    for number, start in enumerate(range(0, rows, CHUNK)):
        count = min(CHUNK, rows - start)
        grey = fixed_column(np.zeros((count, PALETTE_TYPE.byte_width), np.uint8))
        side, now = (
            pa.array(np.full(count, 500, np.int32)),
            pa.array(np.zeros(count, "datetime64[us]")).cast(store.schema.field("embedded_at").type),
        )
        columns = [checksums(folder, start, count), vector_column(np.roll(block, number, axis=1)[:count]), grey, side, side, now]
        store.write(pa.table(columns, schema=store.schema), [], "bench")
    return rows


def write_plain(folder: str, rows: int, dim: int) -> int:
    block = np.random.default_rng(0).standard_normal((CHUNK, dim)).astype(np.float16)
    for number, _ in enumerate(range(0, rows, CHUNK)):
        storage.write_bytes(f"{folder}/plain/{number}", np.roll(block, number, axis=1).tobytes())
    shutil.rmtree(f"{folder}/plain")
    return rows


def new(folder: str, rows: int, dim: int) -> int:
    """A snapshot of all images in another order, one in a hundred of them new: how many are to be embedded."""
    fresh = int(rows * NEW_SHARE)
    order = np.random.default_rng(1).permutation(rows + fresh)[:rows]  # some old ones are gone
    sha = checksums(folder, 0, rows + fresh).take(pa.array(order))
    uris = pa.array([f"images/{n}.jpg" for n in range(rows)])
    looked = pa.table({"sha256": sha, "image_uri": uris})
    expected = int((order >= rows).sum())
    found = len(images_to_embed(looked, EmbeddingStore(f"{folder}/store", dim)))
    if found != expected:
        raise ValueError(f"{expected} images are new, {found} were found")
    return found


def partition(folder: str, rows: int, dim: int, shards: int) -> int:
    keys = np.sort(np.random.default_rng(2).integers(0, 2**63 - 1, rows, dtype=np.int64))
    order = np.random.default_rng(3).permutation(rows)
    usable = pa.table({"key": keys, "sha256": checksums(folder, 0, rows).take(pa.array(order))})
    store = EmbeddingStore(f"{folder}/store", dim)
    write_shards(usable, store, store.commits(), f"{folder}/vectors", shards)
    return rows


def read_plain(folder: str) -> int:
    total = 0
    for file in sorted(Path(folder, "store").glob("*.parquet")):
        data = file.read_bytes()
        hashlib.sha256(data).digest()
        total += len(data)
    return total


def measure(folder: Path, rows: int, dim: int, shards: int) -> list[dict]:
    words = np.random.default_rng(7).integers(0, 256, (int(rows * (1 + NEW_SHARE)), 32), dtype=np.uint8)
    np.save(folder / "checksums.npy", words)
    del words
    place, found = str(folder), []
    stages = (
        ("write plain", write_plain, (place, rows, dim)), ("write", write, (place, rows, dim)),
        ("what is new", new, (place, rows, dim)), ("read plain", read_plain, (place,)),
        ("vectors by shard", partition, (place, rows, dim, shards)),
    )  # fmt: skip
    for name, work, arguments in stages:
        took = measured(work, *arguments)
        speed = rows * dim * 2 / 1e6 / took.seconds
        row = {"stage": name, "seconds": took.seconds, "cpu_s": took.cpu_s, "peak_mib": took.peak_mib, "mb_per_s": speed}
        print(f"{name:18} {took.seconds:8.1f} s {took.cpu_s:8.1f} s CPU {speed:7.0f} MB/s {took.peak_mib:7.0f} MiB", flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        needed, free = NEEDED * chosen.rows * chosen.dim * 2, shutil.disk_usage(name).free
        if free < needed:
            raise SystemExit(
                f"{name}: {free / 1e9:.0f} GB are free and {needed / 1e9:.0f} are needed; set TMPDIR or ask for fewer rows"
            )
        found = measure(Path(name), chosen.rows, chosen.dim, chosen.shards)
    chosen.out.mkdir(parents=True, exist_ok=True)
    facts = {"rows": chosen.rows, "dim": chosen.dim, "shards": chosen.shards, "cores": os.cpu_count(), "stages": found}
    (chosen.out / "store.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
