"""A replica under attack: what shoppers and /healthz see meanwhile, and the memory before and afterwards.

    python -m tests.benchmarks.bench_attack [--seconds 6] [--rate 4] [--only NAME] [--out build/bench]

Shoppers send photos of 12 megapixels at a steady rate to `vitrine-serve` over a tiny release; a stranger attacks it from a process
of its own and the same address (tests/benchmarks/attacks.py); /healthz is asked on a new connection every 0.1 s. Each attack has its
own quiet time before it, to which the shoppers' p99 is compared. Asked for: p99 under 4 times, /healthz under 1 s, memory back to
where it was. Writes attack.json.
"""

import argparse
import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image

from tests.benchmarks.attacks import attacks
from tests.image import allocator_settings
from tests.load import MARK, Shots, fire, photo_request
from tests.releases import make_release
from tests.running import until
from tests.servers import free_port

TIMES, HEALTH_S, MEMORY_MIB = 4.0, 1.0, 40.0
SETTLE_S = 2.0


def photos(count: int = 8) -> list[bytes]:
    """Searches by photos of 12 megapixels, none of them sent twice."""
    found = []
    for seed in range(count):
        blocks = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(blocks).resize((4000, 3000)).save(stream, "JPEG", quality=85)
        found.append(photo_request(stream.getvalue() + MARK))
    return found


@contextmanager
def replica(home: Path, port: int) -> Iterator[psutil.Process]:
    environ = (
        os.environ
        | allocator_settings()
        | {"VITRINE_RELEASE": str(home / "release"), "VITRINE_PORT": str(port), "VITRINE_SAMPLE_RATE": "0"}
    )
    with (home / "replica.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "serving.main"], env=environ, stdout=log, stderr=log)
        try:
            until(lambda: health(port, "/readyz")[0] == 200, "the replica is ready", 60)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def health(port: int, path: str = "/healthz") -> tuple[int, float]:
    """Status (0: none) and seconds of an answer on a new connection."""
    began, status = time.perf_counter(), 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return status, time.perf_counter() - began


class Probe(threading.Thread):
    """Asks /healthz until it is stopped."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.ended, self.seen = port, threading.Event(), list[tuple[int, float]]()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            self.seen.append(health(self.port))

    def worst(self) -> tuple[int, float]:
        """How many were not answered 200, and the slowest in seconds."""
        self.ended.set()
        self.join()
        return sum(status != 200 for status, _ in self.seen), max(took for _, took in self.seen)


def measure(port: int, process: psutil.Process, name: str, shopping: list[bytes], seconds: float, rate: float) -> dict:
    """One attack beside shoppers, after a quiet time."""
    command = [sys.executable, "-m", "tests.benchmarks.attacks", name, str(port), str(seconds + 2)]
    attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    try:
        attacker.stdout.readline()
        quiet = shop(port, shopping, seconds, rate)
        before = process.memory_info().rss
        attacker.stdin.write("\n")
        attacker.stdin.flush()
        time.sleep(1)
        probe = Probe(port)
        probe.start()
        beside = shop(port, shopping, seconds, rate)
        unhealthy, slowest = probe.worst()
        attacker.wait(60)
    finally:
        attacker.kill()
        attacker.communicate()
    time.sleep(SETTLE_S)
    grown = (process.memory_info().rss - before) / 2**20
    p99 = (quiet.ms(99), beside.ms(99))
    kept = p99[1] < TIMES * p99[0] and beside.failed == 0 and slowest < HEALTH_S and unhealthy == 0 and grown < MEMORY_MIB
    return {
        "attack": name, "quiet_p99_ms": p99[0], "p99_ms": p99[1], "times": p99[1] / p99[0], "failed": beside.failed,
        "shots": len(beside.status), "health_s": slowest, "unhealthy": unhealthy, "grown_mib": grown, "kept": bool(kept),
    }  # fmt: skip


def shop(port: int, shopping: list[bytes], seconds: float, rate: float) -> Shots:
    return fire(f"http://127.0.0.1:{port}", shopping, clients=8, seconds=seconds, rate=rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rate", type=float, default=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        home, port, shopping = Path(folder), free_port(), photos()
        make_release(home)
        with replica(home, port) as process:
            shop(port, shopping, 2, chosen.rate)
            print(f"{'attack':34} quiet p99   p99 beside  times  failed  /healthz     memory")
            for name in (n for n in attacks() if chosen.only in n):
                row = measure(port, process, name, shopping, chosen.seconds, chosen.rate)
                rows.append(row)
                print(
                    f"{name:34} {row['quiet_p99_ms']:6.0f} ms  {row['p99_ms']:7.0f} ms  {row['times']:5.1f} {row['failed']:4d}/"
                    f"{row['shots']:<3d} {row['health_s']:6.2f} s {row['grown_mib']:+8.1f} MiB{'' if row['kept'] else '  MISSED'}",
                    flush=True,
                )
            log_bytes = (home / "replica.log").stat().st_size
    print(f"{log_bytes / 2**20:.1f} MiB of log")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "attack.json").write_text(json.dumps({"rows": rows, "log_bytes": log_bytes}, indent=1))


if __name__ == "__main__":
    main()
