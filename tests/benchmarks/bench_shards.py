"""Four shards against one index of the same template: the same answers, and what sharding costs.

    python -m tests.benchmarks.bench_shards [--rows 1000000] [--shards 4] [--families ivf_fs_sq8,hnsw_sq8]

Three ways to search the same vectors, query by query in turn on one thread: one index; the shards as the Searcher does it; and
each shard by itself, its answers merged, as processes that know nothing of each other do. Prints recall@10 against exact search
over all vectors, p50/p99 in CPU time of the one thread that searches (the clock of a machine that others share says more about
them) as a ratio to the one index, and queries per second with two clients, by the clock, as a ratio. Writes shards.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from serving.contract.manifest import CANDIDATES
from serving.index.merge import Neighbors, merge
from serving.index.searcher import Searcher
from tasks.index.build import BuiltShard, build_shard
from tasks.index.choice import IndexConfig
from tasks.index.ground_truth import GroundTruth, exact_truth, recall_against
from tasks.index.template import train_template
from tests.benchmarks.bench_index import manifest_of
from tests.benchmarks.made_shop import MadeShop, made_queries, make_shop
from tests.benchmarks.stages import Stages

PARAMS = {"ivf_fs_sq8": {"nprobe": 128, "k_factor": 4}, "ivf_pq": {"nprobe": 64}, "hnsw_sq8": {"ef": 64}}
K, ROUNDS = 10, 3

Search = Callable[[np.ndarray], np.ndarray]


def built(family: str, shops: dict[int, MadeShop], shards: int, folder: Path) -> tuple[Searcher, list[Searcher], Searcher]:
    """One index, each shard alone, and the shards together, from one template that was trained on all."""
    whole = shops[shards]
    template = train_template(whole.vectors_uri, IndexConfig(shards=shards, family=family), folder)
    parts: dict[int, list[BuiltShard]] = {}
    for count, shop in shops.items():
        same = replace(template, shards=count)
        place = folder / str(count)
        parts[count] = [build_shard(shop.vectors_uri, shop.snapshot.uri, same, s, place / f"shard-{s}") for s in range(count)]

    def opened(count: int, shard: int | None = None) -> Searcher:
        manifest = manifest_of(shops[count], parts[count], family)
        return Searcher.open(manifest, lambda ref: folder / str(count) / ref.path, shard=shard)

    return opened(1), [opened(shards, s) for s in range(shards)], opened(shards)


def as_one(shop: MadeShop, folder: Path) -> MadeShop:
    """The same vectors as one shard: its parts merged in order of key."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / "vectors-one" / "shard=0"
    target.mkdir(parents=True, exist_ok=True)
    tables = [pq.read_table(Path(shop.vectors_uri) / f"shard={s}") for s in range(shop.shards)]
    pq.write_table(
        pa.concat_tables(tables).sort_by("key"), target / "part-00000.parquet", compression="none", use_dictionary=False
    )
    return replace(shop, vectors_uri=str(target.parent), shards=1)


def measure(ways: dict[str, tuple[Searcher, Search]], xq: np.ndarray, truth: GroundTruth) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    keys = {name: np.concatenate([search(q[None]) for q in xq]) for name, (_, search) in ways.items()}
    for _ in range(ROUNDS):
        for q in xq:
            for name, (_, search) in ways.items():
                began = time.thread_time()
                search(q[None])
                times[name].append(1e3 * (time.thread_time() - began))
    rows = []
    for name, (_, search) in ways.items():
        with ThreadPoolExecutor(2) as pool:
            began = time.perf_counter()
            list(pool.map(lambda q: search(q[None]), np.concatenate([xq] * ROUNDS)))  # noqa: B023
            qps = ROUNDS * len(xq) / (time.perf_counter() - began)
        p50, p99 = np.percentile(times[name], [50, 99])
        recall = {
            "recall_at_10": recall_against(keys[name][:, :K], truth, K),
            "within_candidates": recall_against(keys[name], truth, K),
        }
        rows.append({"way": name, **recall, "p50_ms": p50, "p99_ms": p99, "qps_2": qps})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--preset", choices=["easy", "hard"], default="hard")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--families", default="ivf_fs_sq8,hnsw_sq8")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    with TemporaryDirectory(dir=args.out) as name:
        folder = Path(name)
        shop = make_shop(folder, args.rows, args.dim, args.preset, args.shards, Stages(folder / "stages.json"))
        shops = {1: as_one(shop, folder), args.shards: shop}
        xq = made_queries(args.dim, args.preset, args.queries)
        truth = exact_truth(shop.vectors_uri, shop.shards, xq, folder)
        print(f"\n{'family':12} {'way':22} {'recall':>7} {'in500':>6} {'p50 ms':>8} {'p99 ms':>8} {'p50 x':>6} {'QPS x':>6}")
        for family in args.families.split(","):
            one, alone, together = built(family, shops, args.shards, folder / family)
            params = PARAMS[family]

            def keys(searcher: Searcher, found: Neighbors) -> np.ndarray:
                return np.where(found.rows < 0, -1, searcher.features.key[np.maximum(found.rows, 0)])

            def whole(searcher: Searcher, p: dict = params, k: Callable = keys) -> Search:
                return lambda q: k(searcher, searcher.search(q, CANDIDATES, params=p))

            def apart(q: np.ndarray, searchers: list[Searcher] = alone, p: dict = params, k: Callable = keys) -> np.ndarray:
                found = [s.search(q, CANDIDATES, params=p) for s in searchers]
                named = [Neighbors(f.similarity, k(s, f)) for s, f in zip(searchers, found, strict=True)]
                return merge(named, CANDIDATES).rows

            ways = {
                "one index": (one, whole(one)),
                "shards as one": (together, whole(together)),
                "each shard alone": (one, apart),
            }
            rows = measure(ways, xq, truth)
            for row in rows:
                ratios = f"{row['p50_ms'] / rows[0]['p50_ms']:6.2f} {row['qps_2'] / rows[0]['qps_2']:6.2f}"
                figures = f"{row['recall_at_10']:7.3f} {row['within_candidates']:6.3f} {row['p50_ms']:8.2f} {row['p99_ms']:8.2f}"
                print(f"{family:12} {row['way']:22} {figures} {ratios}", flush=True)
                results.append({"family": family} | row)
    (args.out / "shards.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
