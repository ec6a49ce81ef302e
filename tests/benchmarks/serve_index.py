"""A process that serves one index and measures itself: `python -m tests.benchmarks.serve_index FOLDER PARAMS_JSON`.

FOLDER holds manifest.json, the segments it names and queries.npy. Prints JSON: seconds to open, p50 and p99 in ms of one query
at a time (500 candidates) by the clock and in CPU time of its thread, queries per second with one client and with two, resident
memory in GiB (file-backed part apart), and the load of the machine.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from serving.contract.files import verify
from serving.contract.manifest import CANDIDATES, IndexManifest, read_manifest
from serving.index.searcher import Searcher

LEAST_S = 8.0


def resident() -> dict[str, float]:
    """Resident memory of this process, GiB (proc(5): VmRSS = RssAnon + RssFile + RssShmem)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = {n: float(lines[n].split()[0]) for n in ("VmRSS", "RssFile")}
    return {"resident_gib": kib["VmRSS"] / 2**20, "resident_file_gib": kib["RssFile"] / 2**20}


def qps(searcher: Searcher, xq: np.ndarray, params: dict, clients: int) -> float:
    """Queries per second with this many clients, one query each at a time, over at least LEAST_S / 2 seconds."""
    with ThreadPoolExecutor(clients) as pool:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < LEAST_S / 2:
            list(pool.map(lambda q: searcher.search(q[None], CANDIDATES, params=params), xq))
            done += len(xq)
        return done / (time.perf_counter() - began)


def main() -> None:
    folder, params = Path(sys.argv[1]), json.loads(sys.argv[2])
    xq = np.load(folder / "queries.npy")
    began = time.perf_counter()
    manifest = read_manifest(folder / "manifest.json", IndexManifest)
    # Verified as in a replica, which has read every page once when the first query comes.
    searcher = Searcher.open(manifest, lambda ref: verify(folder / ref.path, ref))
    figures = {"open_s": time.perf_counter() - began}
    for q in xq:  # every page the queries need is there before time counts, as a slot is warmed before it is live
        searcher.search(q[None], CANDIDATES, params=params)
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    while time.perf_counter() - began < LEAST_S:
        for q in xq:
            start, cpu = time.perf_counter(), time.thread_time()
            searcher.search(q[None], CANDIDATES, params=params)
            times.append((1e3 * (time.perf_counter() - start), 1e3 * (time.thread_time() - cpu)))
    for prefix, values in zip(("", "cpu_"), np.array(times).T, strict=True):
        figures |= {f"{prefix}p{p}_ms": float(np.percentile(values, p)) for p in (50, 99)}
    figures |= {"load": os.getloadavg()[0], "qps_1": qps(searcher, xq, params, 1)}
    figures |= {"qps_2": qps(searcher, xq, params, 2)}
    print(json.dumps(figures | resident()))


if __name__ == "__main__":
    main()
