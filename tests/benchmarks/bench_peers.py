"""Our families against autofaiss, ScaNN, hnswlib and usearch at equal recall, over the same vectors and queries.

    python -m tests.benchmarks.bench_peers [--rows 1000000] [--ours a,b] [--peers usearch,scann,autofaiss,hnswlib] [--preset hard]

A peer runs in an environment of its own below build/peers/<name>, made beforehand by whoever wants it there, for instance
`uv venv build/peers/scann && VIRTUAL_ENV=build/peers/scann uv pip install scann`; one that is not there is said to be missing.
Every engine is asked for `--candidates` (10) of one query at a time; a version is asked for 500. Prints for each recall target the
cheapest point of every engine: CPU time of a query, queries a second of one core, memory, and queries a second and gigabyte, the
last as a ratio to ours. CPU time, since the clock of a machine that others share says more about them. `--preset` takes a file of
real photos' vectors, made by tests.benchmarks.photo_vectors, in place of made-up ones. With `--work` the indexes are kept there, and
a second run over the same vectors times them without building. Writes peers.json.
"""

import argparse
import json
import os
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np

from serving.contract.segments import read_index
from serving.index.faiss_engine import FaissEngine, omp_threads
from tasks.index.families import FAMILIES, list_count, refine_grid
from tasks.index.graph_reordering import group
from tasks.index.quantizer_codes import choose_codes, code_adder
from tasks.index.template import make_index
from tests.benchmarks.made_shop import world_of
from tests.benchmarks.peer import K, measure

PEERS = Path("build/peers")
OURS = ("hnsw_sq8", "hnsw_bf16", "ivf_fs_sq8")
BLOCK = 50_000
TARGETS = (0.9, 0.95, 0.98, 0.99)
REFINED = (2, 3, 4, 5, 7.5, 10, 15, 20, 30, 40)
"""Times ten."""


def world(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The base (rows, d) and the queries (nq, d)."""
    made = world_of(args.dim, args.preset)
    xb = np.concatenate([made.base(min(BLOCK, args.rows - start)) for start in range(0, args.rows, BLOCK)])
    return xb, made.queries(args.queries)


def ours(name: str, k: int, xb: np.ndarray, xq: np.ndarray, gt: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """Every point of a family's grid and its half steps, asked for k; "family@1024" has so many lists."""
    family, lists = FAMILIES[name.partition("@")[0]], int(name.partition("@")[2] or list_count(len(xb)))
    path, ids, took = folder / f"{name}.faiss", folder / f"{name}.npy", folder / f"{name}.seconds"
    if not took.exists():
        index = make_index(xb.shape[1], family.factory(xb.shape[1], lists))
        began = time.process_time()
        sample = xb[np.random.default_rng(1).permutation(len(xb))[:200_000]]
        index.train(sample)
        choose_codes(index, sample, 1)
        with code_adder(index) as add:
            for start in range(0, len(xb), BLOCK):
                add(xb[start : start + BLOCK])
        order = group(index)
        build_s = time.process_time() - began
        faiss.write_index(index, str(path))
        np.save(ids, np.arange(len(xb)) if order is None else order)
        took.write_text(str(build_s))
    grid = refine_grid(family.grid)
    # Where ten are asked for and not the pipeline's 500 candidates, more of them are refined.
    if k == K and "k_factor" in grid[0]:
        grid = tuple(p | {"k_factor": f} for p in grid if p["k_factor"] == 1 for f in REFINED)
    engine = FaissEngine(read_index(path, xb.shape[1], len(xb)))
    asks = [lambda q, p=params: engine.search(q[None], k, None, p).rows[0] for params in grid]
    place = np.argsort(np.load(ids))  # where each row lies
    with omp_threads(1):
        measured = measure(asks, xq, place[gt])
    same = {"engine": f"ours: {name}", "build_cpu_s": float(took.read_text()), "bytes": path.stat().st_size}
    named = [same | {"params": " ".join(f"{n}={v}" for n, v in params.items())} for params in grid]
    return [point | figures for point, figures in zip(named, measured, strict=True)]


def peer(name: str, k: int, folder: Path) -> list[dict[str, Any]]:
    """The points of another engine; [] where it is not installed or fails, which is said."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        print(f"{name}: not installed ({PEERS / name})")
        return []
    command = [str(python), str(Path(__file__).with_name("peer.py")), name, str(folder), str(k)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        print(f"{name}: failed: {told[-1]}")
        return []
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(points: list[dict[str, Any]], out: Path) -> None:
    """Writes what was measured so far: an hour's work must not be lost with the last engine."""
    (out / "peers.json").write_text(json.dumps(points, indent=1))


def report(points: list[dict[str, Any]]) -> None:
    head = f"{'recall@10':>9} {'CPU ms':>7} {'p99':>6} {'QPS/core':>9} {'GB':>6} {'QPS/GB':>8} {'ours x':>7} {'build s':>8}"
    print(f"\n{'goal':5} {'engine':18} {'parameters':44} {head}")
    engines = list(dict.fromkeys(p["engine"] for p in points))
    for target in TARGETS:
        reference = 0.0
        for engine in engines:
            mine = [p for p in points if p["engine"] == engine]
            good = [p for p in mine if p["recall_at_10"] >= target]
            if not good:
                print(f"{target:5} {engine:18} {'not reached':44} {max(p['recall_at_10'] for p in mine):9.3f}")
                continue
            best = min(good, key=lambda p: p["cpu_ms"])
            qps, size = 1e3 / best["cpu_ms"], best["bytes"] / 1e9
            reference = reference or qps / size
            figures = f"{best['recall_at_10']:9.3f} {best['cpu_ms']:7.3f} {best['cpu_p99_ms']:6.2f} {qps:9.0f} {size:6.3f}"
            ratio = reference / (qps / size)
            print(
                f"{target:5} {engine:18} {best['params'][:44]:44} {figures} {qps / size:8.0f} {ratio:7.2f} {best['build_cpu_s']:8.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--preset", default="hard", help="easy, hard, or a file of tests.benchmarks.photo_vectors")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--ours", default=",".join(OURS), help="FAMILY, or FAMILY@LISTS")
    parser.add_argument("--candidates", type=int, default=K, help="how many every engine is asked for")
    parser.add_argument("--peers", default="autofaiss,scann,hnswlib,usearch")
    parser.add_argument("--work", type=Path, help="where indexes are kept; default: a temporary folder below --out")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    xb, xq = world(args)
    gt = faiss.knn(xq, xb, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    print(f"{len(xb)} x {xb.shape[1]}, {args.preset}, {len(xq)} queries, load {os.getloadavg()[0]:.1f}", flush=True)
    points: list[dict[str, Any]] = []
    with nullcontext(args.work) if args.work else TemporaryDirectory(dir=args.out) as name:
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        if (folder / "gt.npy").exists() and not np.array_equal(np.load(folder / "gt.npy"), gt):
            raise SystemExit(f"{folder} keeps indexes of other vectors; name another --work")
        for what, array in (("xb", xb), ("xq", xq), ("gt", gt)):
            np.save(folder / f"{what}.npy", array)
        for family in args.ours.split(","):
            points += ours(family, args.candidates, xb, xq, gt, folder)
            keep(points, args.out)
            print(f"built and asked: {family}", flush=True)
        for engine in filter(None, args.peers.split(",")):
            points += peer(engine, args.candidates, folder)
            keep(points, args.out)
            print(f"done: {engine}", flush=True)
    report(points)


if __name__ == "__main__":
    main()
