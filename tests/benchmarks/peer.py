"""One other engine, in an environment of its own: builds over FOLDER/xb.npy, asks FOLDER/xq.npy, prints its points as JSON.

    <its python> tests/benchmarks/peer.py ENGINE FOLDER [ASKED]

Needs numpy and the engine alone. An engine is asked for ASKED vectors (10), of which the first ten count. A point: parameters,
recall@10 against FOLDER/gt.npy, mean and p99 CPU milliseconds of one query at a time in its quickest round (of the whole process, so
that no thread hides). Memory is what the saved index takes. An index that FOLDER has from a run before is read, not built.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

K, ROUNDS = 10, 3
TURNS_S = 120.0
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""As finely as ours are tuned: powers of two and what lies half way."""
LEAVES = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.3)
"""Shares of all leaves."""
REORDERED = (20, 30, 50, 100, 200, 300, 500, 1000, 2000)
Ask = Callable[[np.ndarray], np.ndarray]


def usearch(xb: np.ndarray, folder: Path, k: int) -> Iterator[tuple[str, Ask, Path]]:
    from usearch.index import Index

    for kind in ("i8", "f16"):
        index = Index(ndim=xb.shape[1], metric="ip", dtype=kind, connectivity=16, expansion_add=128)
        path = folder / f"usearch-{kind}"
        if path.exists():
            index.load(str(path))
        else:
            index.add(np.arange(len(xb)), xb, threads=2)
            index.save(f"{path}.part")
            Path(f"{path}.part").rename(path)
        for ef in sorted({max(ef, k) for ef in EFS}):

            def ask(q: np.ndarray, index: Any = index, ef: int = ef) -> np.ndarray:
                index.expansion_search = ef
                return index.search(q, k, threads=1).keys

            yield f"{kind} ef={ef}", ask, path


def hnswlib(xb: np.ndarray, folder: Path, k: int) -> Iterator[tuple[str, Ask, Path]]:
    import hnswlib as library

    index = library.Index(space="ip", dim=xb.shape[1])
    path = folder / "hnswlib"
    if path.exists():
        index.load_index(str(path))
    else:
        index.init_index(max_elements=len(xb), ef_construction=128, M=16)
        index.add_items(xb, np.arange(len(xb)), num_threads=2)
        index.save_index(f"{path}.part")
        Path(f"{path}.part").rename(path)
    for ef in sorted({max(ef, k) for ef in EFS}):

        def ask(q: np.ndarray, ef: int = ef) -> np.ndarray:
            index.set_ef(ef)
            return index.knn_query(q[None], k, num_threads=1)[0][0]

        yield f"ef={ef}", ask, path


def scann(xb: np.ndarray, folder: Path, k: int) -> Iterator[tuple[str, Ask, Path]]:
    import scann as library

    leaves = int(2 * len(xb) ** 0.5)
    path = folder / "scann"
    if (path / "scann_assets.pbtxt").exists():  # written last
        index = library.scann_ops_pybind.load_searcher(str(path))
    else:
        builder = library.scann_ops_pybind.builder(xb, K, "dot_product")
        tree = builder.tree(num_leaves=leaves, num_leaves_to_search=40, training_sample_size=min(len(xb), 250_000))
        index = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(300).build()
        path.mkdir(exist_ok=True)
        index.serialize(str(path))
    for share, reorder in product(LEAVES, [r for r in REORDERED if k <= r <= 50 * k]):
        probe = max(1, int(share * leaves))

        def ask(q: np.ndarray, probe: int = probe, reorder: int = reorder) -> np.ndarray:
            return index.search(q, k, leaves_to_search=probe, pre_reorder_num_neighbors=reorder)[0]

        yield f"leaves={probe} reorder={reorder}", ask, path


def autofaiss(xb: np.ndarray, folder: Path, k: int) -> Iterator[tuple[str, Ask, Path]]:
    import faiss
    from autofaiss import build_index

    path = folder / "autofaiss.index"
    allowed = f"{len(xb) * 600 / 2**20:.0f}MB"  # what our own family takes
    index, infos = build_index(
        xb, save_on_disk=True, index_path=str(path), index_infos_path=str(folder / "autofaiss.json"), metric_type="ip",
        max_index_memory_usage=allowed, current_memory_available="8G", max_index_query_time_ms=10, verbose=30, nb_cores=2,
    )  # fmt: skip
    faiss.omp_set_num_threads(1)
    yield f"its own choice: {infos['index_key']} {infos['index_param']}", lambda q: index.search(q[None], k)[1][0], path


ENGINES = {f.__name__: f for f in (usearch, hnswlib, scann, autofaiss)}


def measure(asks: list[Ask], xq: np.ndarray, gt: np.ndarray) -> list[dict[str, float]]:
    """For each point recall@10 against the exact ids gt (nq, 10), and CPU milliseconds a query of its quickest round.

    All points take turns for two minutes: the machine is slow for tens of seconds when others work beside it, and then for all of them.
    """
    found = [[np.asarray(ask(q)) for q in xq] for ask in asks]
    rounds: list[list[np.ndarray]] = [[] for _ in asks]
    began = time.monotonic()
    while len(rounds[-1]) < ROUNDS or time.monotonic() - began < TURNS_S:
        for ask, mine in zip(asks, rounds, strict=True):
            mine.append(np.array([_cpu_ms(ask, q) for q in xq]))
    points = []
    for rows, mine in zip(found, rounds, strict=True):
        recall = float(np.mean([len(np.intersect1d(f[:K], g[:K])) / K for f, g in zip(rows, gt, strict=True)]))
        best = min(mine, key=lambda times: float(times.mean()))
        points.append({"recall_at_10": recall, "cpu_ms": float(best.mean()), "cpu_p99_ms": float(np.percentile(best, 99))})
    return points


def _cpu_ms(ask: Ask, q: np.ndarray) -> float:
    began = time.process_time()
    ask(q)
    return 1e3 * (time.process_time() - began)


def weight(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else os.stat(path).st_size


def main() -> None:
    engine, folder = sys.argv[1], Path(sys.argv[2])
    k = int(sys.argv[3]) if len(sys.argv) > 3 else K
    xb, xq, gt = (np.load(folder / f"{n}.npy") for n in ("xb", "xq", "gt"))
    points: list[dict[str, Any]] = []
    asks: list[Ask] = []
    began = time.process_time()
    took = folder / f"{engine}.seconds"
    for params, ask, path in ENGINES[engine](xb, folder, k):
        if not took.exists():
            took.write_text(str(time.process_time() - began))
        points.append({"engine": engine, "params": params, "build_cpu_s": float(took.read_text()), "bytes": weight(path)})
        asks.append(ask)
    points = [p | m for p, m in zip(points, measure(asks, xq, gt), strict=True)]
    print("\n" + json.dumps(points))


if __name__ == "__main__":
    main()
