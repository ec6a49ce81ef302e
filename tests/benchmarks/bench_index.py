"""Every index family through the pipeline's own build and tuning, at equal recall, in one run.

    python -m tests.benchmarks.bench_index [--rows 1000000] [--preset hard] [--shards 1] [--families a,b] [--out build/bench]

Prints one row per family and recall target: the chosen parameters, recall@10 of the answer, recall of the true top 10 within 500
candidates, p50/p99 of one query at a time, queries per second with two clients, bytes a vector, and the build time. Writes
index.json (every trial) and index.png (recall against p50).
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.contract.keys import product_keys, shard_of
from serving.searcher import Searcher
from tasks.catalog.snapshot import take_snapshot
from tasks.errors import VitrineError
from tasks.index.build import IndexConfig, build_shard, train_template
from tasks.index.families import FAMILIES
from tasks.index.truth import exact_truth
from tasks.index.tune import tune
from tests.benchmarks.vectors import Vectors
from tests.index.shop import Shop, manifest_of

TARGETS = (0.95, 0.99)
BLOCK = 50_000


def make(folder: Path, rows: int, dim: int, preset: str, shards: int, queries: int) -> tuple[Shop, np.ndarray]:
    """A snapshot of made-up products and their shard vectors, written in blocks; and the queries (nq, d)."""
    world = Vectors(dim, preset)
    ids = [f"P{i:08d}" for i in range(rows)]
    catalog = folder / "catalog"
    catalog.mkdir()
    pacsv.write_csv(pa.table({"product_id": ids, "title": ids, "image": ids}), catalog / "products.csv")
    snapshot = take_snapshot(str(catalog), str(folder / "snapshots"), "bench")
    keys = np.sort(product_keys(ids))
    kind = pa.list_(pa.float16(), dim)
    schema = pa.schema([("key", pa.int64()), ("image_sha256", pa.binary(32)), ("vector", kind)])
    writers = []
    for shard in range(shards):
        (folder / "vectors" / f"shard={shard}").mkdir(parents=True)
        writers.append(pq.ParquetWriter(folder / "vectors" / f"shard={shard}" / "part-00000.parquet", schema))
    for start in range(0, rows, BLOCK):
        block = keys[start : start + BLOCK]
        vectors = world.base(len(block)).astype(np.float16)
        for shard, writer in enumerate(writers):
            mine = shard_of(block, shards) == shard
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[mine].reshape(-1)), dim)
            images = pa.array([b"\0" * 32] * int(mine.sum()), pa.binary(32))
            writer.write_table(pa.table([pa.array(block[mine]), images, column], schema=schema))
    for writer in writers:
        writer.close()
    shop = Shop(folder, snapshot, str(folder / "vectors"), ids, keys, np.zeros((0, dim), np.float32), shards)
    return shop, world.queries(queries)


def qps(searcher: Searcher, xq: np.ndarray, params: dict, clients: int = 2) -> float:
    """Queries per second with this many clients, one query each at a time."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        list(pool.map(lambda q: searcher.search(q[None], 500, params=params), xq))
        return len(xq) / (time.perf_counter() - began)


def bench_family(name: str, shop: Shop, xq: np.ndarray, truth: Any, folder: Path) -> list[dict]:
    """One row per recall target; a family that cannot be built or does not reach a target says why."""
    times = {}
    began = time.perf_counter()
    template = train_template(shop.vectors_uri, IndexConfig(shards=shop.shards, family=name), folder)
    times["train_s"] = time.perf_counter() - began
    began = time.perf_counter()
    built = [build_shard(shop.vectors_uri, shop.snapshot.uri, template, s, folder / f"shard-{s}") for s in range(shop.shards)]
    times["add_s"] = time.perf_counter() - began
    searcher = Searcher.open(manifest_of(shop, built), lambda ref: folder / ref.path)
    size = sum(b.index["bytes"] for b in built) / searcher.rows
    rows = []
    tuned = tune(searcher, xq, name, 0.0, truth)
    for target in TARGETS:
        good = [t for t in tuned.trials if t["recall_at_10"] >= target]
        row = {"family": name, "factory": template.factory, "target": target, "bytes_per_vector": size, **times}
        if good:
            best = min(good, key=lambda t: t["p50_ms"])
            row |= {k: best[k] for k in ("params", "recall_at_10", "within_candidates", "p50_ms", "p99_ms")}
            row["qps_2"] = qps(searcher, xq, best["params"])
        else:
            best = max(tuned.trials, key=lambda t: t["recall_at_10"])
            row |= {"missed": best["recall_at_10"], "within_candidates": best["within_candidates"]}
        rows.append(row | {"trials": tuned.trials})
    return rows


def line(row: dict) -> str:
    head = f"{row['family']:16} {row['target']:.2f}"
    tail = f"{row.get('bytes_per_vector', 0):7.0f} {row.get('train_s', 0):7.1f} {row.get('add_s', 0):7.1f}"
    if "params" not in row:
        why = row.get("refused") or f"best recall@10 {row['missed']:.3f}, within 500 {row['within_candidates']:.3f}"
        return f"{head} not reached: {why:58} {tail}"
    figures = f"{row['recall_at_10']:6.3f} {row['within_candidates']:6.3f} {row['p50_ms']:7.2f} {row['p99_ms']:7.2f} {row['qps_2']:8.0f}"
    params = " ".join(f"{k}={v}" for k, v in row["params"].items())
    return f"{head} {params:24} {figures} {tail}"


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for row in rows:
        if row["target"] == TARGETS[0] and "trials" in row:
            points = sorted((t["p50_ms"], t["recall_at_10"]) for t in row["trials"] if t["pareto"])
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{row['family']} ({row['bytes_per_vector']:.0f} B)")
    axes.set(xlabel="p50 per query, ms, one thread", ylabel="recall@10", xscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--preset", choices=["easy", "hard"], default="hard")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    with TemporaryDirectory(dir=args.out) as name:
        folder = Path(name)
        shop, xq = make(folder, args.rows, args.dim, args.preset, args.shards, args.queries)
        truth = exact_truth(shop.vectors_uri, shop.shards, xq, folder)
        print(
            f"{args.rows} x {args.dim}, {args.preset}, {args.shards} shards, {len(xq)} queries; load {psutil.getloadavg()[0]:.1f}"
        )
        titles = "recall  in500  p50 ms  p99 ms   QPS x2   B/vec train s   add s"
        print(f"{'family':16} goal {'parameters':24} {titles}")
        for family in args.families.split(","):
            try:
                rows = bench_family(family, shop, xq, truth, folder / family)
            except VitrineError as error:
                rows = [{"family": family, "target": TARGETS[0], "refused": str(error)}]
            results += rows
            for row in rows:
                print(line(row), flush=True)
    peak = psutil.Process().memory_info().rss / 2**30
    print(f"memory of this process at the end: {peak:.2f} GiB")
    (args.out / "index.json").write_text(
        json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": results}, indent=1)
    )
    plot(results, args.out / "index.png")


if __name__ == "__main__":
    main()
