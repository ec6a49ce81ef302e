"""Checkouts of this project side by side: what a change costs or gains a shopper, in one run on one machine.

    git worktree add ../before 8710f00
    python -m tests.benchmarks.bench_compare --before ../before [--after NAME=PATH ...] [--clients 8] [--pairs 7] [--out build/bench]

Every checkout's own `vitrine-serve` opens the same release, with the allocator settings of the serving image; the checkout of
`--before` runs twice, so that its second replica shows the spread of two equal things (A/A). In every round each replica has the
load for `--seconds`, one after the other, in an order that turns from round to round. A round's ratio is a replica's throughput
over that of the first replica in the same round. Prints the median ratio of all rounds with its least and greatest, p50 and p99 in
milliseconds, and writes compare.json.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from serving.contract.manifest import CANDIDATES
from tests.benchmarks.bench_serving import Target, measure, requests_of, wait_until_ready
from tests.benchmarks.market import Market, market
from tests.image import allocator_settings
from tests.servers import free_port

AGAIN = "before, again"


@contextmanager
def replica_of(checkout: Path, release: Path, log: Path, chosen: dict[str, str]) -> Iterator[Target]:
    """`vitrine-serve` with the code of a checkout, its settings and the packages of this environment, ready; its url and process."""
    port = free_port()
    settings = {"RELEASE": str(release.absolute()), "PORT": str(port), "WORKERS": "2"} | chosen
    environ = os.environ | allocator_settings() | {f"VITRINE_{n}": v for n, v in settings.items()}
    environ["PYTHONPATH"] = str(checkout.absolute())
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "serving.main"], cwd=checkout, env=environ, stderr=stream)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)


def _opened(described: str, made: Market, log: Path) -> AbstractContextManager[Target]:
    checkout, *settings = described.split(",")
    return replica_of(Path(checkout), made.release, log, dict(s.split("=", 1) for s in settings))


def rounds_of(
    made: Market, replicas: dict[str, Target], kind: str, clients: int, pairs: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What `measure` gives for every replica in every round, in the order of the rounds."""
    candidates = itertools.cycle(range(CANDIDATES - 10, CANDIDATES + 11))
    for target in replicas.values():
        measure([target], requests_of(made, kind, next(candidates)), clients, 1.0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in replicas}
    names = list(replicas)
    for number in range(pairs):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            rows[name].append(measure([replicas[name]], requests_of(made, kind, next(candidates)), clients, seconds))
    return rows


def compared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """By replica: median, least and greatest ratio of its throughput to the first replica's, and its median QPS, p50 and p99."""
    first = np.array([r["qps"] for r in next(iter(rows.values()))])
    table = {}
    for name, own in rows.items():
        ratio = np.array([r["qps"] for r in own]) / first
        medians = {n: float(np.median([r[n] for r in own])) for n in ("qps", "p50", "p99", "cpu_ms")}
        rank = float(np.median([r["phases"]["rank"]["p50"] for r in own]))
        table[name] = {
            "ratio": float(np.median(ratio)),
            "least": float(ratio.min()),
            "most": float(ratio.max()),
            "rank_ms": rank,
            **medians,
        }
    return table


def show(kind: str, clients: int, table: dict[str, dict[str, float]]) -> None:
    print(
        f"\n{kind} queries, {clients} clients      ratio (least - most)       QPS    p50 ms   p99 ms   rank ms   CPU ms",
        flush=True,
    )
    for name, row in table.items():
        print(
            f"  {name:28} {row['ratio']:6.3f} ({row['least']:.3f} - {row['most']:.3f})  {row['qps']:8.1f}  {row['p50']:8.2f}"
            f" {row['p99']:8.2f}  {row['rank_ms']:8.2f} {row['cpu_ms']:8.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument(
        "--after", action="append", default=[], help="NAME=CHECKOUT, several times; this checkout where none is named"
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[8])
    parser.add_argument("--kinds", nargs="+", default=["photo", "vector"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = market(args.out, args.rows)
    named = dict(a.split("=", 1) for a in args.after) or {"after": "."}
    checkouts = {"before": str(args.before), AGAIN: str(args.before)} | named
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        replicas = {
            name: stack.enter_context(_opened(described, made, args.out / f"compare-{n}.log"))
            for n, (name, described) in enumerate(checkouts.items())
        }
        print(f"{args.rows} x 512, {args.pairs} rounds of {args.seconds:g} s each; load {psutil.getloadavg()[0]:.1f}")
        for kind, clients in itertools.product(args.kinds, args.clients):
            table = compared(rounds_of(made, replicas, kind, clients, args.pairs, args.seconds))
            show(kind, clients, table)
            results[f"{kind}, {clients} clients"] = table
    (args.out / "compare.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
