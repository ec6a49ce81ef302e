"""A gateway over four shard processes against one process that holds everything, on the same index, side by side.

    python -m tests.benchmarks.bench_gateway [--rows 200000] [--seconds 3] [--rounds 3] [--out build/bench]

All six processes run at once and are asked in turns, over real HTTP, by a load generator in a process of its own; no query is asked
twice. On a machine with few cores the shards share them with the gateway: this shows what fanning out costs, not what it gains.
Then one shard is killed under load and started again. Prints queries per second, p50, p99, the processor time of all processes per
query, and the memory of each. Writes gateway.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.bench_serving import requests_of
from tests.benchmarks.market import market
from tests.cluster import Cluster, Serving, cluster
from tests.load import Load, fire

CLIENTS = (1, 8, 32)
SHARDS = 4
WORKERS = 2


def measure(processes: list[Serving], url: str, asked: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """One round of load on one side. Raises RuntimeError when anything was not answered, or not by all shards."""
    before = sum(p.cpu_s() for p in processes)
    shots = fire(url, asked, clients, seconds)
    cpu_s = sum(p.cpu_s() for p in processes) - before
    if shots.failed or (shots.shards != SHARDS).any():
        raise RuntimeError(f"{shots.failed} failures, coverage {np.unique(shots.shards).tolist()}")
    row = {"qps": shots.qps, "p50": shots.ms(50), "p99": shots.ms(99), "cpu_ms": 1e3 * cpu_s / int(shots.ok.sum())}
    return row | {f"{name}_p50": float(np.median(shots.phase_ms(name))) for name in ("retrieve", "rank", "total")}


def compare(whole: Serving, made: Cluster, requests: dict[str, list[bytes]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The median round of each side, per kind of query and number of clients."""
    sides = {"all": ([whole], whole.url), "gateway": ([made.gateway, *made.shards], made.gateway.url)}
    rows = []
    for kind, asked in requests.items():
        for clients in CLIENTS:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for number in range(rounds + 1):
                for side, (processes, url) in sides.items():
                    row = measure(processes, url, asked, clients, 1.0 if number == 0 else seconds)
                    if number:  # the first is for warming
                        found[side].append(row)
            for side, measured in found.items():
                middle = sorted(measured, key=lambda r: r["qps"])[len(measured) // 2]
                rows.append({"kind": kind, "clients": clients, "side": side, **middle})
    return rows


def kill(made: Cluster, asked: list[bytes]) -> dict[str, Any]:
    """One shard killed under load of 8 clients and started again: what was answered, and when coverage was full again."""
    victim = made.shards[2]
    with Load(made.gateway.url, asked, 8, 300.0) as load:
        time.sleep(3.0)
        killed_at = time.time()
        victim.kill()
        time.sleep(3.0)
        victim.start()
        started_at = time.time()
        victim.until_ready()
        ready_at = time.time()
        time.sleep(6.0)
        shots = load.stop()
    partial = shots.at_s[shots.shards == SHARDS - 1]
    return {
        "requests": len(shots.status),
        "not_200": shots.failed,
        "coverage": {int(s): int((shots.shards == s).sum()) for s in np.unique(shots.shards)},
        "first_partial_after_kill_s": float(partial.min() - killed_at),
        "ready_after_start_s": ready_at - started_at,
        "full_after_ready_s": max(0.0, float(partial.max() - ready_at)),
        "p99_before": shots.ms(99, shots.at_s < killed_at),
        "p99_during": shots.ms(99, (shots.at_s >= killed_at) & (shots.at_s < started_at)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--family", default="ivf_fs_sq8")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shop = market(args.out, args.rows, args.family, shards=SHARDS)
    requests = {kind: requests_of(shop, kind) for kind in ("vector", "photo")}
    print(f"{args.rows} x 512 in {SHARDS} shards, {shop.manifest().search}; load {psutil.getloadavg()[0]:.1f}")
    with (
        cluster(shop.release, args.out, SHARDS, {"workers": str(WORKERS)}) as made,
        Serving(shop.release, args.out / "all.log", workers=str(WORKERS)) as whole,
    ):
        whole.until_ready()
        rows = compare(whole, made, requests, args.rounds, args.seconds)
        print(
            f"{'queries':8} clients {'side':8} {'QPS':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8}  retrieve  rank  total (p50 ms)"
        )
        for row in rows:
            phases = "  ".join(f"{row[f'{n}_p50']:.2f}" for n in ("retrieve", "rank", "total"))
            figures = f"{row['qps']:8.0f} {row['p50']:8.2f} {row['p99']:8.2f} {row['cpu_ms']:8.2f}"
            print(f"{row['kind']:8} {row['clients']:7} {row['side']:8} {figures}  {phases}")
        memory = {"all": whole.resident_bytes(), "gateway": made.gateway.resident_bytes()}
        memory |= {f"shard {n}": s.resident_bytes() for n, s in enumerate(made.shards)}
        print("memory, MiB: " + ", ".join(f"{n} {b / 2**20:.0f}" for n, b in memory.items()))
        killed = kill(made, requests["vector"])
        print(json.dumps(killed, indent=1))
    arguments = {k: str(v) for k, v in vars(args).items()}
    content = {"arguments": arguments, "rows": rows, "memory": memory, "killed": killed}
    (args.out / "gateway.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
