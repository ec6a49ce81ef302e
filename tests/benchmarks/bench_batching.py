"""Searches worked on together, and photos encoded together, against each by itself, in turns, over real HTTP.

    python -m tests.benchmarks.bench_batching [--seconds 3] [--rounds 3] [--out build/bench]

A small index, so that encoding is what a query costs. Writes batching.json.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.benchmarks.bench_serving import requests_of
from tests.benchmarks.market import market
from tests.cluster import Serving
from tests.load import fire

CLIENTS = (1, 8, 32)
SIDES = {
    "each by itself, 2 workers": {"workers": "2", "together": "1"},
    "together up to 4, 2 workers": {"workers": "2", "together": "4"},
    "together up to 8, 2 workers": {"workers": "2", "together": "8"},
    "together and encoded up to 8": {"workers": "2", "together": "8", "encode_batch": "8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--family", default="flat")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shop = market(args.out, args.rows, args.family, shards=args.shards)
    asked = requests_of(shop, "photo")
    rows: list[dict] = []
    with ExitStack() as stack:
        started = {n: stack.enter_context(Serving(shop.release, args.out / "batching.log", **s)) for n, s in SIDES.items()}
        for serving in started.values():
            serving.until_ready()
            fire(serving.url, asked, 8, 0.5)
        for clients in CLIENTS:
            found: dict[str, list[dict]] = {name: [] for name in SIDES}
            for _ in range(args.rounds):
                for name, serving in started.items():
                    shots = fire(serving.url, asked, clients, args.seconds)
                    found[name].append({"qps": shots.qps, "p50": shots.ms(50), "p99": shots.ms(99), "failed": shots.failed})
            for name, measured in found.items():
                middle = sorted(measured, key=lambda r: r["qps"])[len(measured) // 2]
                rows.append({"clients": clients, "side": name, **middle})
    print(f"{args.rows} products, photos of 500 x 500; load {psutil.getloadavg()[0]:.1f}")
    print(f"clients {'':28} {'QPS':>8} {'p50 ms':>8} {'p99 ms':>8} failed")
    for row in rows:
        print(f"{row['clients']:7} {row['side']:28} {row['qps']:8.0f} {row['p50']:8.1f} {row['p99']:8.1f} {row['failed']:6}")
    (args.out / "batching.json").write_text(
        json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
