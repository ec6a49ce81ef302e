"""The capacity model against a real replica: what it predicts of two workers under open load, and what is measured.

    python -m tests.benchmarks.bench_capacity [--rows 200000] [--seconds 20] [--out build/bench]

The replica is measured alone first, one photo at a time, as `vitrine capacity` does; the model then says p50 and p99 for Poisson
arrivals at a share of what two cores carry by those times, and the load generator sends just that. Writes capacity.json, and the
measured times as capacity-times.json for `vitrine capacity --times`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tasks.capacity.service_times import measure_times, synthetic_photos, write_times
from tasks.capacity.simulation import replica_path, simulate
from tests.benchmarks.bench_serving import requests_of
from tests.benchmarks.market import market
from tests.cluster import Serving
from tests.load import fire

LOADS = (0.3, 0.5, 0.65, 0.8)
PHOTOS = 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--family", default="ivf_fs_sq8")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shop = market(args.out, args.rows, args.family, shards=args.shards)
    asked = requests_of(shop, "photo")
    cores = min(2, os.cpu_count() or 1)
    rows: list[dict[str, Any]] = []
    with Serving(shop.release, args.out / "capacity.log", workers="2", queue="1000") as replica:
        replica.until_ready()
        times = measure_times(replica.url, synthetic_photos(PHOTOS, seed=os.getpid()))
        write_times(args.out / "capacity-times.json", times)
        mean, slow = float(times.total.mean()), float(np.percentile(times.total, 99))
        print(f"one at a time: {mean:.2f} ms a photo (p99 {slow:.2f}); load of the machine {psutil.getloadavg()[0]:.1f}")
        print(" busy     QPS  predicted p50  measured  predicted p99  measured  ratio failed")
        for load in LOADS:
            qps = load * cores / mean * 1e3
            told = simulate(replica_path(times, cores), qps)
            shots = fire(replica.url, asked, 64, args.seconds, rate=qps)
            row = {"load": load, "qps": qps, "predicted_p50": told.percentile(50), "measured_p50": shots.ms(50)}
            row |= {
                "predicted_p99": told.percentile(99),
                "measured_p99": shots.ms(99),
                "failed": shots.failed,
                "asked": len(shots.status),
            }
            rows.append(row)
            ratio = row["measured_p99"] / row["predicted_p99"]
            figures = (
                f"{row['predicted_p50']:14.1f} {row['measured_p50']:9.1f} {row['predicted_p99']:14.1f} {row['measured_p99']:9.1f}"
            )
            print(f"{load:5.0%} {qps:7.0f} {figures} {ratio:6.2f} {shots.failed:6}")
    arguments = {k: str(v) for k, v in vars(args).items()}
    (args.out / "capacity.json").write_text(json.dumps({"arguments": arguments, "mean_ms": mean, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
