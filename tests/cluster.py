"""Serving processes of all roles over one exported release, each `vitrine-serve` as it runs in its container."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from tests.image import allocator_settings
from tests.patience import PROBE_S, SETTINGS
from tests.servers import free_port

PATIENT = {name: str(value) for name, value in SETTINGS.items()}
PATIENTLY = ("-c", f"from serving.cluster import fleet; from serving.main import main; fleet.PROBE_TIMEOUT_S = {PROBE_S}; main()")


class Serving:
    """One process on a port of its own, which it keeps over restarts. `with` starts it, waits until it is ready, and ends it."""

    def __init__(self, release: Path, log: Path, **settings: str) -> None:
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", log
        chosen = {"RELEASE": str(release), "PORT": str(port), **settings}
        self.environ = os.environ | allocator_settings() | {f"VITRINE_{n.upper()}": str(v) for n, v in chosen.items()}
        self.command: tuple[str, ...] = ("-m", "serving.main")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("a") as stream:
            self.process = subprocess.Popen([sys.executable, *self.command], env=self.environ, stderr=stream)

    def ready(self) -> bool:
        """Whether it says so. Raises RuntimeError when the process has ended."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.log.stem} has ended; see {self.log}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def until_ready(self, limit_s: float = 120.0) -> float:
        """The seconds it took."""
        began = time.monotonic()
        while not self.ready():
            if time.monotonic() - began > limit_s:
                raise TimeoutError(f"{self.log.stem} is not ready after {limit_s:.0f} s; see {self.log}")
            time.sleep(0.05)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL: it has no time for anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def resident_bytes(self) -> int:
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss

    def cpu_s(self) -> float:
        assert self.process is not None
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def __enter__(self) -> "Serving":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass(frozen=True)
class Cluster:
    """A gateway and its shard processes, `shards[i]` holding shard i."""

    gateway: Serving
    shards: list[Serving]

    def coverage(self) -> tuple[int, int]:
        """Shards that have a process which is up, and all there are, as the gateway sees it."""
        told = httpx.get(f"{self.gateway.url}/v1/version", timeout=30, trust_env=False).json()["shards"]
        return len({s for b in told if b["up"] for s in b["shards"]}), len(self.shards)


@contextmanager
def cluster(
    release: Path, folder: Path, shards: int, shard: dict[str, str] | None = None, patient: bool = False, **gateway: str
) -> Iterator[Cluster]:
    """One process for each shard and a gateway, all ready; `shard` and `gateway` are further settings.

    A `patient` gateway does not lose a shard that stands still for some seconds; one whose port is closed it loses at once.
    """
    gateway = PATIENT | gateway if patient else gateway
    with ExitStack() as stack:
        held = [
            stack.enter_context(Serving(release, folder / f"shard-{s}.log", role="shard", shards=str(s), **(shard or {})))
            for s in range(shards)
        ]
        urls = ",".join(s.url for s in held)
        front = Serving(release, folder / "gateway.log", role="gateway", shard_urls=urls, **gateway)
        front.command = PATIENTLY if patient else front.command
        stack.enter_context(front)
        front.until_ready()
        yield Cluster(front, held)
