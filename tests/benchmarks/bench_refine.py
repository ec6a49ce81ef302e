"""Comparing stored vectors that lie scattered: their codes copied side by side first, against what FAISS offers.

    python -m tests.benchmarks.bench_refine [--rows 1000000] [--family ivf_fs_sq8] [--index FILE.faiss --queries FILE.npy]

One index, memory-mapped as a replica opens it, asked through our engine and through FAISS's IndexRefine, which reads vector after
vector where they lie; both refine the same estimates. Always in turns and one query at a time: CPU time of the one thread that
searches in the quickest of the rounds, queries per second of two threads by the clock, and the share of rows on which both agree.
The index is that of the shop of tests.benchmarks.market, or a file (queries: (n, d) float32). Writes refine.json.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np

from serving.index.faiss_engine import FaissEngine
from tests.benchmarks.market import market

POINTS = ((10, 5, 16), (10, 50, 32), (500, 1, 32), (500, 2, 64), (500, 4, 128))
"""Asked for, k_factor, nprobe."""
ROUNDS = 12
Search = Callable[[np.ndarray], np.ndarray]


def ways(index: faiss.Index, engine: FaissEngine, k: int, k_factor: float, nprobe: int) -> dict[str, Search]:
    """How to get the rows (1, k) of a query (1, d)."""
    base = faiss.SearchParametersIVF(nprobe=nprobe)
    params = faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=base)
    return {
        "faiss": lambda q: index.search(q, k, params=params)[1],
        "ours": lambda q: engine.search(q, k, None, {"nprobe": nprobe, "k_factor": k_factor}).rows,
    }


def cpu_ms(search: Search, xq: np.ndarray) -> float:
    began = time.thread_time()
    for q in xq:
        search(q[None])
    return 1e3 * (time.thread_time() - began) / len(xq)


def qps(search: Search, xq: np.ndarray) -> float:
    def half(mine: np.ndarray) -> None:
        faiss.omp_set_num_threads(1)
        for q in mine:
            search(q[None])

    with ThreadPoolExecutor(2) as pool:
        began = time.perf_counter()
        list(pool.map(half, (xq[0::2], xq[1::2])))
    return len(xq) / (time.perf_counter() - began)


def measure(index: faiss.Index, engine: FaissEngine, xq: np.ndarray, k: int, k_factor: float, nprobe: int) -> dict:
    both = ways(index, engine, k, k_factor, nprobe)
    found = {name: np.concatenate([search(q[None]) for q in xq]) for name, search in both.items()}
    agree = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found["faiss"], found["ours"], strict=True)])
    times: dict[str, list[float]] = {name: [] for name in both}
    rates: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(ROUNDS):
        for name, search in both.items():
            times[name].append(cpu_ms(search, xq))
            rates[name].append(qps(search, xq))
    point = {"k": k, "k_factor": k_factor, "nprobe": nprobe, "agree": float(agree)}
    return point | {f"{n}_ms": min(t) for n, t in times.items()} | {f"{n}_qps_2": max(r) for n, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--family", default="ivf_fs_sq8", help="a refined one")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.index:
        path, xq = args.index, np.load(args.queries)
    else:
        made = market(args.out, args.rows, args.family)
        refs = [s.index for s in made.manifest().segments if s.index is not None]
        path, xq = made.release / "files" / refs[0].sha256, made.queries[:200]
    faiss.omp_set_num_threads(1)
    # Two of them, since an engine sets how its own goes through its lists.
    index, ours = (faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for _ in range(2))
    engine = FaissEngine(ours)
    print(f"{index.ntotal} x {index.d}, {len(xq)} queries, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'k':>4} {'refined':>7} {'nprobe':>6} {'agree':>6} {'faiss ms':>9} {'ours ms':>8} {'x':>5} {'QPS, 2 threads':>15} {'x':>5}"
    )
    points = []
    for k, k_factor, nprobe in POINTS if isinstance(index, faiss.IndexRefine) else ():
        p = measure(index, engine, xq, k, k_factor, nprobe)
        points.append(p)
        rates = f"{p['faiss_qps_2']:7.0f} {p['ours_qps_2']:7.0f} {p['ours_qps_2'] / p['faiss_qps_2']:5.2f}"
        times = f"{p['faiss_ms']:9.3f} {p['ours_ms']:8.3f} {p['faiss_ms'] / p['ours_ms']:5.2f}"
        print(f"{k:4} {k * k_factor:7.0f} {nprobe:6} {p['agree']:6.3f} {times} {rates}", flush=True)
    (args.out / "refine.json").write_text(json.dumps(points, indent=1))


if __name__ == "__main__":
    main()
