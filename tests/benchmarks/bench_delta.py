"""What hourly deltas cost, and what they do to recall and latency until the next rebuild.

    python -m tests.benchmarks.bench_delta [--rows 1000000] [--shards 2] [--changes 1000,10000,100000] [--shares 0.01,0.1] [--base FOLDER]

Three tables. Cost: seconds and bytes written of a delta of each size. Growth: products added in `--hours` hourly deltas, up to a
share of the base, flat as they are written, merged into one a shard, and with the base's lists and codes as the pipeline leaves
more than CODED_ROWS of them; recall@10 against exact search over all live rows, p50 and p99 of one query at a time. Deletions: a
share of the base hidden by tombstones. Every line is measured in turn with the base alone, and times are ratios to it: CPU time
of the one thread that searches, since the clock of a machine that others share says more about them. `--base` names the folder
of a family that bench_index built (with `--work`): its index is used, and with `--changes-only` only the cost is measured. Writes
delta.json.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from serving.contract.files import FileRef
from serving.contract.keys import product_keys
from serving.contract.manifest import CANDIDATES, IndexManifest, read_manifest
from serving.contract.segments import read_rows
from serving.index.searcher import Searcher
from tasks.index.delta import Changes, add_delta, code_deltas, merge_deltas
from tasks.index.template import Template
from tests.benchmarks.bench_index import build, manifest_of
from tests.benchmarks.made_shop import made_queries, make_shop
from tests.benchmarks.stages import Stages
from tests.benchmarks.vectors import Vectors

FAMILY, PARAMS = "ivf_fs_sq8", {"nprobe": 128, "k_factor": 4}
K = 10
ROUNDS = 3


class Bench:
    """A base on disk, and versions of it with changes on top in `folder`."""

    def __init__(self, base: Path, template: Template, folder: Path, preset: str, queries: int) -> None:
        self.base, self.template, self.folder = base, template, folder
        self.manifest = manifest = read_manifest(base / "manifest.json", IndexManifest)
        self.world = Vectors(manifest.encoder.dim, preset).seeded(77)
        self.row = read_rows(base / manifest.segments[0].table.path).slice(0, 1)
        self.keys = np.concatenate([read_rows(base / s.table.path)["key"].to_numpy() for s in manifest.segments])
        self.xq = made_queries(manifest.encoder.dim, preset, queries)

    def locate(self, ref: FileRef) -> Path:
        path = self.folder / ref.path
        return path if path.is_file() else self.base / ref.path

    def open(self, segments: tuple) -> Searcher:
        return Searcher.open(self.manifest.model_copy(update={"segments": segments}), self.locate)

    def inserts(self, first: int, count: int) -> Changes:
        """New products, numbered from `first`."""
        ids = [f"N{n:08d}" for n in range(first, first + count)]
        rows = self.row.take(pa.array(np.zeros(count, int)))
        rows = rows.set_column(rows.column_names.index("product_id"), "product_id", pa.array(ids))
        rows = rows.set_column(rows.column_names.index("key"), "key", pa.array(product_keys(ids), pa.int64()))
        return Changes(rows, self.world.base(count), np.zeros(0, np.int64), rows["key"].to_numpy())

    def deletes(self, keys: np.ndarray) -> Changes:
        return Changes(self.row.slice(0, 0), np.zeros((0, self.manifest.encoder.dim), np.float32), keys)


def cost(bench: Bench, sizes: list[int]) -> Iterator[dict[str, Any]]:
    for number, size in enumerate(sizes):
        changes = bench.inserts(10_000_000 * (number + 1), size)
        path = f"cost{size}"
        began = time.perf_counter()
        add_delta(bench.manifest, changes, bench.folder / path, prefix=path)
        took = time.perf_counter() - began
        written = sum(f.stat().st_size for f in (bench.folder / path).iterdir())
        yield {"changes": size, "seconds": took, "bytes": written, "bytes_per_change": written / size}


def compared(bench: Bench, base: Searcher, other: Searcher) -> dict[str, float]:
    """Recall of `other`, and its times over those of the base, query by query in turn."""
    found = other.search(bench.xq, CANDIDATES, params=PARAMS).similarity[:, :K]
    exact = other.exact(bench.xq, K).similarity
    times: dict[str, list[float]] = {"base": [], "other": []}
    for _ in range(ROUNDS):
        for q in bench.xq:
            for name, searcher in (("base", base), ("other", other)):
                began = time.thread_time()
                searcher.search(q[None], CANDIDATES, params=PARAMS)
                times[name].append(1e3 * (time.thread_time() - began))
    percentiles = {n: np.percentile(t, [50, 99]) for n, t in times.items()}
    return {
        "recall_at_10": float((found >= exact[:, -1:] - 1e-4).mean()),
        "p50_ms": float(percentiles["other"][0]), "p99_ms": float(percentiles["other"][1]),
        "p50_ratio": float(percentiles["other"][0] / percentiles["base"][0]),
        "p99_ratio": float(percentiles["other"][1] / percentiles["base"][1]),
    }  # fmt: skip


def growth(bench: Bench, hours: int, shares: list[float]) -> Iterator[dict[str, Any]]:
    base = bench.open(bench.manifest.segments)
    for number, share in enumerate(shares):
        segments, each = bench.manifest.segments, int(share * len(bench.keys) / hours)
        for hour in range(hours):
            path = f"grow{number}-{hour}"
            changes = bench.inserts(100_000_000 + 10_000_000 * number + hour * each, each)
            manifest = bench.manifest.model_copy(update={"segments": segments})
            segments = add_delta(manifest, changes, bench.folder / path, prefix=path)
        yield {"share": share, "way": f"{hours} deltas"} | compared(bench, base, bench.open(segments))
        manifest = bench.manifest.model_copy(update={"segments": segments})
        for way in ("merged", "coded"):
            path, began = f"{way}{number}", time.perf_counter()
            if way == "merged":
                made = merge_deltas(manifest, bench.locate, bench.folder / path, prefix=path)
            else:
                made = code_deltas(manifest, bench.locate, bench.template, bench.folder / path, prefix=path)
            took = time.perf_counter() - began
            yield {"share": share, "way": way, "seconds": took} | compared(bench, base, bench.open(made))


def deletions(bench: Bench, shares: list[float]) -> Iterator[dict[str, Any]]:
    base = bench.open(bench.manifest.segments)
    order = np.random.default_rng(1).permutation(bench.keys)
    for share in shares:
        path = f"gone{share}"
        segments = add_delta(bench.manifest, bench.deletes(order[: int(share * len(order))]), bench.folder / path, prefix=path)
        yield {"share": share} | compared(bench, base, bench.open(segments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--preset", choices=["easy", "hard"], default="hard")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--hours", type=int, default=10)
    parser.add_argument("--changes", default="1000,10000,100000")
    parser.add_argument("--shares", default="0.01,0.05,0.1,0.2,0.4", help="of the base: what is added, and what is deleted")
    parser.add_argument("--changes-only", action="store_true")
    parser.add_argument("--base", type=Path, help="a family's folder that bench_index built; default: built here")
    parser.add_argument("--work", type=Path, help="where stages are kept; default: a temporary folder below --out")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out) as name:
        base = args.base
        if base is None:
            work = args.work or Path(name) / "base"
            work.mkdir(parents=True, exist_ok=True)
            stages = Stages(work / "stages.json")
            shop = make_shop(work, args.rows, args.dim, args.preset, args.shards, stages)
            base = work / FAMILY
            (base / "manifest.json").parent.mkdir(exist_ok=True)
            template, built = build(FAMILY, shop, base, stages)
            (base / "manifest.json").write_text(manifest_of(shop, built, FAMILY).model_dump_json())
        else:
            template = Template.from_json(Stages(base.parent / "stages.json").done[f"{FAMILY}: train"]["result"])
        bench = Bench(base, template, Path(name) / "changes", args.preset, args.queries)
        result: dict[str, Any] = {"rows": len(bench.keys), "cost": [], "growth": [], "deletions": []}
        print(
            f"{len(bench.keys)} rows in {bench.manifest.shards} shards\n\n{'changes':>9} {'seconds':>9} {'MiB':>8} {'bytes/change':>13}"
        )
        for row in cost(bench, [int(n) for n in args.changes.split(",")]):
            result["cost"].append(row)
            print(
                f"{row['changes']:9} {row['seconds']:9.2f} {row['bytes'] / 2**20:8.1f} {row['bytes_per_change']:13.0f}",
                flush=True,
            )
        titles = f"{'recall@10':>10} {'p50 ms':>8} {'p99 ms':>8} {'p50 x base':>11} {'p99 x base':>11}"
        shares = [float(s) for s in args.shares.split(",")]
        tables = (("growth", growth(bench, args.hours, shares)), ("deletions", deletions(bench, shares)))
        for kind, rows in () if args.changes_only else tables:
            print(f"\n{kind:18} {'share':>6} {titles}")
            for row in rows:
                result[kind].append(row)
                how = row.get("way", "tombstones")
                figures = f"{row['p50_ms']:8.2f} {row['p99_ms']:8.2f} {row['p50_ratio']:11.2f} {row['p99_ratio']:11.2f}"
                print(f"{how:18} {row['share']:6.0%} {row['recall_at_10']:10.3f} {figures}", flush=True)
    (args.out / "delta.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
