"""Engines side by side on the same vectors, through the code that serves: recall@10 of 500 candidates, latency, build time, memory.

python -m tests.benchmarks.bench_engines [--rows 20000] [--dim 512] [--preset hard] [--queries 200] [--engines faiss,scann,…]

The full form is --rows 200000; --preset takes a file of tests.benchmarks.photo_vectors as well. Qdrant is its engine in this process
(qdrant-edge-py), without a server and its network. Other servers run on this machine beside their clients and share its cores with
them. Memory is what the process, or the engine's processes, grew by.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import psutil

from serving.contract.manifest import Scalar
from serving.contract.provenance import EngineRef
from serving.index.engine import Engine
from serving.index.faiss_engine import FaissEngine, omp_threads
from serving.index.remote_engine import connect
from serving.index.scann_engine import ScannEngine
from tasks.index.engine_collections import open_collections
from tasks.index.engine_families import engine_family
from tasks.index.families import FAMILIES, list_count
from tasks.index.scann_files import make_searcher
from tasks.index.template import make_index
from tests.benchmarks.made_shop import world_of
from tests.benchmarks.qdrant_edge import QdrantEdge
from tests.engines.servers import milvus_server, pgvector_server

K, CANDIDATES, TARGET = 10, 500, 0.95
CLIENTS = (1, 8)
COLLECTION = "vitrine_bench"
Built = tuple[Engine, tuple[dict[str, Scalar], ...], float]
"""An engine, its parameters from cheap to thorough, and the MiB of memory it took."""
SERVERS = {"pgvector": pgvector_server, "milvus": milvus_server}


@dataclass(frozen=True)
class Measured:
    """One engine at the cheapest of its parameters that reaches TARGET, or at its best. Times in ms, by number of clients."""

    engine: str
    params: dict[str, Scalar]
    recall_at_10: float
    p50_ms: dict[int, float]
    p99_ms: dict[int, float]
    qps: dict[int, float]
    build_s: float
    memory_mb: float


def measure(name: str, build: Callable[[], Built], xq: np.ndarray, truth: np.ndarray) -> Measured:
    """Builds an engine and measures it. The grid is from cheap to thorough; it is followed until TARGET is reached."""
    began = time.perf_counter()
    engine, grid, memory_mb = build()
    build_s = time.perf_counter() - began
    for params in grid:
        found = engine.search(xq, CANDIDATES, None, params).rows[:, :K]
        reached = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]))
        if reached >= TARGET:
            break
    p50, p99, qps = {}, {}, {}
    for clients in CLIENTS:
        p50[clients], p99[clients], qps[clients] = under_load(engine, params, xq, clients)
    return Measured(name, params, reached, p50, p99, qps, build_s, memory_mb)


def under_load(engine: Engine, params: dict[str, Scalar], xq: np.ndarray, clients: int) -> tuple[float, float, float]:
    """p50 and p99 in ms and queries per second of so many clients, one query at a time each."""

    def asked(x: np.ndarray) -> float:
        began = time.perf_counter()
        with omp_threads(1):
            engine.search(x[None], CANDIDATES, None, params)
        return 1e3 * (time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = list(pool.map(asked, xq))
    return float(np.percentile(took, 50)), float(np.percentile(took, 99)), len(xq) / (time.perf_counter() - began)


def rss_mb() -> float:
    """Resident memory of this process, MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)


def built_faiss(family: str, x: np.ndarray) -> Built:
    before = rss_mb()
    index = make_index(x.shape[1], FAMILIES[family].factory(x.shape[1], list_count(len(x))))
    index.train(x)
    index.add(x)
    return FaissEngine(index), FAMILIES[family].grid, rss_mb() - before


def built_scann(x: np.ndarray) -> Built:
    before = rss_mb()
    made = ScannEngine(make_searcher(x), x, tree=True)
    return made, tuple({"nprobe": n, "k_factor": 2} for n in (4, 8, 16, 32, 64, 128, 256)), rss_mb() - before


def built_qdrant(x: np.ndarray, stack: ExitStack) -> Built:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrine-qdrant-"))
    before = rss_mb()
    return QdrantEdge(x, Path(folder)), engine_family("qdrant").grid, rss_mb() - before


def built_remote(name: str, x: np.ndarray, stack: ExitStack) -> Built:
    server = stack.enter_context(SERVERS[name]())
    family, collections = engine_family(name), open_collections(name, server.endpoint)
    before = children_mb()
    factory = family.factory(x.shape[1], list_count(len(x)))
    collections.create(COLLECTION, x.shape[1], factory)
    for first in range(0, len(x), 5000):
        collections.put(COLLECTION, first, x[first : first + 5000])
    collections.complete(COLLECTION, factory, len(x))
    ref = EngineRef(name=name, collection=COLLECTION, rows=len(x), digest="0" * 64)
    return connect(ref, server.endpoint.patient(), x.shape[1]), family.grid, children_mb() - before


def children_mb() -> float:
    """Resident memory of the servers that this process started, MiB; PostgreSQL's are found by name, as they leave their parent."""
    mine = {p.pid: p for p in psutil.Process().children(recursive=True)}
    mine |= {p.pid: p for p in psutil.process_iter(["name"]) if p.info["name"] == "postgres"}
    total = 0.0
    for process in mine.values():
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss / 2**20
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--preset", default="hard", help="easy, hard, or a file of tests.benchmarks.photo_vectors")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", default="faiss,scann,pgvector,milvus,qdrant")
    asked = parser.parse_args()
    world = world_of(asked.dim, asked.preset)
    x, xq = world.seeded(1).base(asked.rows), world.seeded(2).queries(asked.queries)
    truth = faiss.knn(xq, x, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    print(
        f"{asked.rows} x {asked.dim}, {asked.preset}, {len(xq)} queries, {CANDIDATES} candidates, recall@10 of {TARGET} asked for"
    )
    print("engine | params | recall@10 | p50/p99 ms, 1 client | p50/p99 ms, 8 clients | QPS 1 / 8 | build s | MiB")
    done: list[Measured] = []
    with ExitStack() as stack:
        builds: dict[str, Callable[[], Built]] = {
            "faiss flat": lambda: built_faiss("flat", x), "faiss ivf_fs_sq8": lambda: built_faiss("ivf_fs_sq8", x),
            "faiss hnsw_sq8": lambda: built_faiss("hnsw_sq8", x), "scann": lambda: built_scann(x),
            "pgvector hnsw": lambda: built_remote("pgvector", x, stack), "milvus hnsw": lambda: built_remote("milvus", x, stack),
            "qdrant hnsw, in process": lambda: built_qdrant(x, stack),
        }  # fmt: skip
        for name, build in builds.items():
            if name.split()[0] not in asked.engines.split(","):
                continue
            m = measure(name, build, xq, truth)
            done.append(m)
            one, many = CLIENTS
            print(
                f"{m.engine} | {m.params} | {m.recall_at_10:.3f} | {m.p50_ms[one]:.2f}/{m.p99_ms[one]:.2f} | "
                f"{m.p50_ms[many]:.2f}/{m.p99_ms[many]:.2f} | {m.qps[one]:.0f} / {m.qps[many]:.0f} | {m.build_s:.1f} | {m.memory_mb:.0f}",
                flush=True,
            )
    path = Path("build/bench/engines.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(m) for m in done], indent=1))


if __name__ == "__main__":
    main()
