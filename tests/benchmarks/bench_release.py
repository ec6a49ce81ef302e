"""How long a flip and a rollback take to every replica while shoppers ask, and that nobody notices.

    python -m tests.benchmarks.bench_release [--products 400] [--rounds 6] [--rate 20] [--out build/bench]

A real MLflow server, two replicas (`vitrine-serve`, polling every 2 s) as processes of their own, and a load generator on each at a
steady rate, photos and vectors. In turns, a version is promoted by the code of the DAG (warm, shadow check, flip), and rolled back
twice: with the replicas told to look (`POST /v1/follow`), and by their polling alone. Prints seconds from the first write to MLflow
until every replica serves the other version, failed requests, and the versions that answered. Writes release.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tasks.demo.services import mlflow_service, process_environment
from tasks.demo.supervisor import Supervisor
from tasks.pipelines import promote_index, rollback_index
from tasks.registry import Registry
from tasks.settings import PROJECT, Settings
from tests.load import Load, json_request, photo_request
from tests.registered import TOKEN, Shop
from tests.servers import free_port

REPLICAS = 2
LONG_S = 1200.0


@contextmanager
def replica(settings: Settings, number: int) -> Iterator[None]:
    """One `vitrine-serve` at its url."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VITRINE_")} | process_environment(settings)
    port = settings.serving_urls[number].rsplit(":", 1)[1]
    environ |= {"VITRINE_PORT": port, "VITRINE_CACHE": str(settings.home / f"replica-{number}"), "VITRINE_LOG": "text"}
    with (settings.home / f"replica-{number}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "serving.main"], env=environ, cwd=PROJECT, stdout=log, stderr=log)
        try:
            until_ready(settings.serving_urls[number])
            yield
        finally:
            process.terminate()
            process.wait(30)


def until_ready(url: str) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} is not ready after 120 s")


def measure(shop: Shop, versions: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, round by round; `versions` are three that passed, the first of them live."""
    found: dict[str, list[float]] = {"flip": [], "rollback, told": [], "rollback, polling": []}
    for number in range(rounds):
        held = shop.registry.aliases("product-index")
        wanted = next(v for v in versions if v not in (held["blue"], held.get("green")))
        found["flip"].append(promote_index.promote(wanted, f"bench {number}", bake_s=0).seconds)
        for name, token in (("rollback, told", TOKEN), ("rollback, polling", "")):
            os.environ["VITRINE_ADMIN_TOKEN"] = token
            found[name].append(rollback_index.roll_back(f"bench {number} back").seconds)
            time.sleep(0.37)  # so that polls are not met in step
        os.environ["VITRINE_ADMIN_TOKEN"] = TOKEN
    return found


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--products", type=int, default=400)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--rate", type=float, default=20.0, help="requests a second to each replica")
    options.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = options.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-release-")))
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(REPLICAS + 1)]
        settings = Settings(home=home, mlflow_uri=urls[0], serving_urls=tuple(urls[1:]), admin_token=TOKEN, bake_s=0)
        os.environ.update(process_environment(settings))
        supervisor, service = Supervisor(home), mlflow_service(settings)
        supervisor.start(service)
        stack.callback(supervisor.stop, service.name)
        supervisor.wait(service)
        shop = Shop(home, Registry(settings.mlflow_uri, home / "cache"), chosen.products)
        versions = [shop.version() for _ in range(3)]
        shop.point(blue=versions[0], live=versions[0])
        for number in range(REPLICAS):
            stack.enter_context(replica(settings, number))
        promote_index.promote(versions[1], "bench", bake_s=0)
        photos = sorted((home / "shop" / "photos").glob("*-2.jpg"))[:200]
        vectors = np.random.default_rng(0).standard_normal((200, 16))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        asked = [photo_request(p.read_bytes()) for p in photos] + [json_request({"vector": v.tolist()}) for v in vectors]
        loads = [stack.enter_context(Load(url, asked, 8, LONG_S, chosen.rate, seed)) for seed, url in enumerate(urls[1:])]
        time.sleep(2)
        found = measure(shop, versions, chosen.rounds)
        shots = [load.stop() for load in loads]
    report(found, shots, chosen)


def report(found: dict[str, list[float]], shots: list[Any], chosen: argparse.Namespace) -> None:
    asked, failed = sum(len(s.status) for s in shots), sum(s.failed for s in shots)
    rows = {name: {"median": float(np.median(s)), "most": max(s), "rounds": len(s)} for name, s in found.items()}
    print(f"{'to every one of ' + str(REPLICAS) + ' replicas':<28}{'median s':>10}{'most s':>10}{'rounds':>8}")
    for name, row in rows.items():
        print(f"{name:<28}{row['median']:>10.2f}{row['most']:>10.2f}{row['rounds']:>8}")
    ratio = rows["rollback, polling"]["median"] / max(rows["rollback, told"]["median"], 1e-9)
    print(f"told to look is {ratio:.1f}x faster than polling every 2 s")
    answered = sorted({str(v) for s in shots for v in s.version if v})
    print(
        f"{asked} requests meanwhile, {failed} failed; answers of versions {', '.join(answered)}; p99 {max(s.ms(99) for s in shots):.0f} ms"
    )
    record = {
        "products": chosen.products, "rate": chosen.rate, "seconds": found, "summary": rows, "ratio": ratio, "requests": asked,
        "failed": failed, "versions": answered, "p99_ms": max(s.ms(99) for s in shots),
    }  # fmt: skip
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "release.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
