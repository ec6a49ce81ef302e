"""Every index family through the pipeline's own build and tuning, at equal recall, in one run, at any size.

    python -m tests.benchmarks.bench_index [--rows 1000000] [--preset hard] [--shards 1] [--families a,b] [--work FOLDER]

Stages: snapshot, vectors (streamed to disk, 2 bytes a number), exact truth, for each family training and each shard, then for each
tuning (the whole grid, and for each recall target), and the chosen point measured in a fresh process that holds nothing but the
index, as a replica does. With `--work` every stage is kept there: a run that was killed goes on where it was, and `--until STAGE`
stops after one. Prints one row per family and recall target: the parameters, recall@10 of the answer, recall of the true top 10
within 500 candidates, p50/p99 of one query at a time by the clock and in CPU time, queries per second with two clients, resident
memory, build time. Writes index.json and index.png (recall against p50).
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from serving.contract.counts import Counts
from serving.contract.manifest import IndexManifest, SnapshotRef
from serving.index.searcher import Searcher
from tasks.errors import VitrineError
from tasks.index.build import BuiltShard, build_shard
from tasks.index.choice import IndexConfig
from tasks.index.families import FAMILIES
from tasks.index.ground_truth import GroundTruth, exact_truth
from tasks.index.template import Template, train_template
from tasks.index.tune import tune
from tasks.index.version_manifest import base_segment
from tests.benchmarks.made_shop import MadeShop, made_queries, make_shop
from tests.benchmarks.same_lists import add_codes, train_codes
from tests.benchmarks.stages import Stages
from tests.index.shop import EMPTY, encoder_ref

TARGETS = (0.95, 0.99)


def build(name: str, shop: MadeShop, folder: Path, stages: Stages) -> tuple[Template, list[BuiltShard]]:
    if "@" in name:
        return build_beside(name, shop, folder, stages)
    config = IndexConfig(shards=shop.shards, family=name)
    trained = stages.run(f"{name}: train", lambda: train_template(shop.vectors_uri, config, folder).to_json())
    template = Template.from_json(trained)
    built = []
    for shard in range(shop.shards):

        def one(number: int = shard) -> dict:
            return build_shard(shop.vectors_uri, shop.snapshot.uri, template, number, folder / f"shard-{number}").to_json()

        built.append(BuiltShard.from_json(stages.run(f"{name}: add shard {shard}", one)))
    return template, built


def build_beside(name: str, shop: MadeShop, folder: Path, stages: Stages) -> tuple[Template, list[BuiltShard]]:
    """The codes of "ivf_pq@<family>" over the lists that <family> built in this run."""
    base = name.partition("@")[2]
    template, whole = build(base, shop, folder.with_name(base), stages)
    made = stages.run(f"{name}: train", lambda: train_codes(shop, template, folder))

    def one(beside: BuiltShard) -> dict:
        return add_codes(shop, made["file"], beside, folder / f"shard-{beside.shard}")

    built = [BuiltShard.from_json(stages.run(f"{name}: add shard {b.shard}", lambda b=b: one(b))) for b in whole]
    return dataclasses.replace(template, family="ivf_pq", factory=made["factory"]), built


def manifest_of(shop: MadeShop, built: list[BuiltShard], family: str) -> IndexManifest:
    """A manifest whose paths are relative to the family's folder."""
    s, n = shop.snapshot, sum(b.rows for b in built)
    return IndexManifest(
        id=family, created_at="2026-01-01T00:00:00+00:00", encoder=encoder_ref(shop.dim),
        snapshot=SnapshotRef(id=s.id, uri=s.uri, rows=s.rows, content_sha256=s.content_sha256), shards=shop.shards,
        segments=tuple(base_segment(b, "", f"shard-{b.shard}") for b in built), search={"family": family},
        counts=Counts(catalogue=s.rows, embedded=n, quarantined=0, indexed=n, servable=n), golden=EMPTY,
    )  # fmt: skip


def bench_family(name: str, shop: MadeShop, xq: np.ndarray, truth: GroundTruth, folder: Path, stages: Stages) -> list[dict]:
    """One row per recall target; a family that does not reach one says how near it came."""
    template, built = build(name, shop, folder, stages)
    (folder / "manifest.json").write_text(manifest_of(shop, built, template.family).model_dump_json())
    np.save(folder / "queries.npy", xq)

    def tuned(target: float) -> tuple[list[dict], dict]:
        searcher = Searcher.open(manifest_of(shop, built, template.family), lambda ref: folder / ref.path)
        made = tune(searcher, xq, template.family, target, truth)
        return made.trials, made.chosen

    trials, _ = stages.run(f"{name}: tune", lambda: tuned(0.0))
    rows = []
    for target in TARGETS:
        reached = any(t["recall_at_10"] >= target for t in trials)
        if not reached and rows and not rows[-1]["reached"]:
            continue  # the same point again
        row = {
            "family": name, "factory": template.factory, "target": target, "trials": trials,
            "bytes_per_vector": sum(b.index.bytes for b in built) / sum(b.rows for b in built),
            "train_s": stages.seconds(f"{name}: train"), "add_s": stages.seconds(f"{name}: add"),
        }  # fmt: skip
        chosen = max(trials, key=lambda t: t["within_candidates"])
        if reached:
            chosen = stages.run(f"{name}: tune for {target}", lambda t=target: tuned(t))[1]
        row |= {k: chosen[k] for k in ("params", "recall_at_10", "within_candidates")} | {"reached": reached}
        row |= stages.run(f"{name}: serve at {target}", lambda c=chosen: served(folder, c["params"]))
        rows.append(row)
    return rows


def served(folder: Path, params: dict) -> dict[str, float]:
    """What a fresh process measures that opens the index and answers queries."""
    command = [sys.executable, "-m", "tests.benchmarks.serve_index", str(folder), json.dumps(params)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def line(row: dict) -> str:
    if "refused" in row:
        return f"{row['family']:16} {row['refused']}"
    recalls = f"{row['recall_at_10']:6.3f} {row['within_candidates']:6.3f}"
    times = " ".join(f"{row[n]:7.2f}" for n in ("p50_ms", "p99_ms", "cpu_p50_ms", "cpu_p99_ms"))
    figures = f"{recalls} {times} {row['qps_2']:8.0f}"
    tail = f"{row['bytes_per_vector']:7.0f} {row['resident_gib']:8.2f} {row['train_s']:8.1f} {row['add_s']:8.1f}"
    params = " ".join(f"{k}={v}" for k, v in row["params"].items()) + ("" if row["reached"] else " (not reached)")
    return f"{row['family']:16} {row['target']:.2f} {params:26} {figures} {tail}"


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


@contextmanager
def workplace(chosen: Path | None, out: Path) -> Iterator[Path]:
    """The folder that was asked for, which stays, or a temporary one."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with TemporaryDirectory(dir=out) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--preset", default="hard", help="easy, hard, or a file of tests.benchmarks.photo_vectors")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="ivf_pq@FAMILY: codes over the lists of a family before it"
    )
    parser.add_argument("--work", type=Path, help="where stages are kept; default: a temporary folder below --out")
    parser.add_argument("--until", default="", help="stop after this stage, for instance 'ivf_pq: tune'")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    with workplace(args.work, args.out) as folder:
        stages = Stages(folder / "stages.json", args.until)
        print(f"{args.rows} x {args.dim}, {args.preset}, {args.shards} shards; load {psutil.getloadavg()[0]:.1f}", flush=True)
        shop = make_shop(folder, args.rows, args.dim, args.preset, args.shards, stages)
        xq = made_queries(args.dim, args.preset, args.queries)
        stages.run("exact truth", lambda: len(exact_truth(shop.vectors_uri, shop.shards, xq, folder).keys))
        truth = exact_truth(shop.vectors_uri, shop.shards, xq, folder)
        for family in args.families.split(","):
            with suppress(VitrineError):  # said again below
                build(family, shop, folder / family, stages)
        for family in args.families.split(","):
            try:
                results += bench_family(family, shop, xq, truth, folder / family, stages)
            except VitrineError as error:
                results.append({"family": family, "target": TARGETS[0], "refused": str(error)})
        print(f"\nmost memory in any stage of building: {stages.peak_gib():.2f} GiB")
        seconds = {n: s["seconds"] for n, s in stages.done.items()}
    titles = "recall  in500  p50 ms  p99 ms CPU p50 CPU p99   QPS x2   B/vec resident  train s    add s"
    print(f"{'family':16} goal {'parameters':26} {titles}")
    for row in results:
        print(line(row))
    content = {"arguments": {k: str(v) for k, v in vars(args).items()}, "seconds": seconds, "rows": results}
    (args.out / "index.json").write_text(json.dumps(content, indent=1))
    plot(results, args.out / "index.png")


if __name__ == "__main__":
    main()
