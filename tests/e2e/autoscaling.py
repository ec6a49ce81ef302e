"""A scaler as Kubernetes' over real processes: replicas with a quarter of a core each, HAProxy in front, Prometheus that asks them.

The number of replicas follows the ScaledObject of the gateways in docker/kubernetes, its own query and threshold included. What it
asks of a pod of four cores is asked here of a quarter of that, since these have one worker, and every time in it is divided by
FASTER, so that an hour passes in minutes. A replica that goes gets SIGTERM, as a pod does, and HAProxy
learns from `/readyz` alone.
"""

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from tests.cluster import Serving
from tests.docker.horizontal_scaler import SYNC_S, HorizontalScaler
from tests.docker.test_autoscaling import CORES, scaled_object
from tests.running import answers, until
from tests.servers import free_port

FASTER = 10
MOST = 4
DRAIN_S = 2
QUOTA = 0.25
PERIOD_US = 10_000
"""Of the quota: short, so that a replica is a slow core rather than one that stands still for most of each tenth of a second."""
CGROUPS = Path("/sys/fs/cgroup")

HAPROXY = """
global
  maxconn 2000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout check 5s
  # A request that a replica loses fails: what is tried is the replica, not how often HAProxy asks again.
  retries 0
frontend shoppers
  bind 127.0.0.1:{port}
  default_backend replicas
backend replicas
  balance leastconn
  option httpchk GET /readyz
  default-server check inter 250ms fall 1 rise 1
{servers}
"""
PROMETHEUS = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: vitrine
    static_configs: [{{targets: [{targets}], labels: {{role: gateway}}}}]
"""


def missing() -> list[str]:
    """Debian's packages that are not installed, and what else there is not."""
    found = [name for name in ("haproxy", "prometheus") if not program(name)]
    return found + ([] if quota_file() else [f"a writable cgroup with a quota of processor time below {CGROUPS}"])


def program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def quota_file() -> str:
    """cpu.max (version 2) or cpu/cpu.cfs_quota_us (version 1), as this machine has it; "" where this process may make no group."""
    if "cpu" in _text(CGROUPS / "cgroup.subtree_control").split() and os.access(CGROUPS, os.W_OK):
        return "cpu.max"
    return "cpu/cpu.cfs_quota_us" if os.access(CGROUPS / "cpu", os.W_OK) else ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


class Quota:
    """A control group whose processes together get QUOTA of a core."""

    def __init__(self, name: str) -> None:
        version_2 = quota_file() == "cpu.max"
        self.folder = (CGROUPS if version_2 else CGROUPS / "cpu") / f"vitrine-{os.getpid()}-{name}"
        self.folder.mkdir()
        quota_us = int(QUOTA * PERIOD_US)
        if version_2:
            (self.folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us))

    def hold(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        until(lambda: not _text(self.folder / "cgroup.procs"))
        self.folder.rmdir()


@dataclass(frozen=True)
class Look:
    """What the scaler saw and did at a moment (`at_s` since the epoch)."""

    at_s: float
    value: float
    wanted: int
    ready: int


@dataclass
class Fleet:
    """Replicas that come and go; the first `wanted` of them are there. `ended` are the exit codes of those that went."""

    replicas: list[Serving]
    quotas: list[Quota]
    wanted: int = 0
    ready: set[int] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)
    leaving: list[threading.Thread] = field(default_factory=list)

    def scale(self, wanted: int) -> None:
        for n in range(self.wanted, wanted):
            replica = self.replicas[n]
            if replica.process is not None:
                replica.process.wait(30)  # the one before it on this port still drains
            replica.start()
            assert replica.process is not None
            self.quotas[n].hold(replica.process.pid)
        for n in range(wanted, self.wanted):
            self.ready.discard(n)
            self.leaving.append(threading.Thread(target=self._end, args=(self.replicas[n],)))
            self.leaving[-1].start()
        self.wanted = wanted

    def _end(self, replica: Serving) -> None:
        assert replica.process is not None
        replica.process.terminate()
        try:
            self.ended.append(replica.process.wait(30))
        except subprocess.TimeoutExpired:
            replica.kill()
            self.ended.append(replica.process.returncode)

    def look(self) -> int:
        """How many are ready. One that was is not asked again: it may be busy."""
        self.ready |= {n for n in range(self.wanted) if n not in self.ready and self.replicas[n].ready()}
        return len(self.ready)

    def close(self) -> None:
        self.scale(0)
        for thread in self.leaving:
            thread.join()
        for quota in self.quotas:
            quota.remove()


@dataclass
class Loop:
    """Asks Prometheus what KEDA would ask it, and sets the number of replicas; a thread while it is entered."""

    fleet: Fleet
    prometheus: str
    scaler: HorizontalScaler
    looks: list[Look] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Loop":
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.over.wait(SYNC_S / FASTER):
            values = [self.ask(t.query) for t in self.scaler.triggers]
            ready = self.fleet.look()
            wanted = self.scaler.pods(time.time(), self.fleet.wanted, ready, values)
            self.looks.append(Look(time.time(), values[0], wanted, ready))
            self.fleet.scale(wanted)

    def ask(self, query: str) -> float:
        """The value of a query; 0 where there is nothing, as KEDA has it."""
        told = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=10, trust_env=False)
        found = told.raise_for_status().json()["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def replicas(self, since_s: float, until_s: float) -> tuple[int, int]:
        """The least and the most that were ready meanwhile."""
        ready = [look.ready for look in self.looks if since_s <= look.at_s <= until_s]
        return min(ready), max(ready)


def scaler() -> HorizontalScaler:
    """The gateways', for pods of one worker and for one to MOST of them; the windows of its query are shorter, too."""
    found = scaled_object("vitrine-gateway", FASTER)
    for n, trigger in enumerate(found.triggers):
        query = re.sub(r"\[(\d+)m\]", lambda m: f"[{60 * int(m[1]) // FASTER}s]", trigger.query)
        query = re.sub(r", (\d+)\)\)$", lambda m: f", {int(m[1]) / CORES}))", query)
        assert query != trigger.query
        found.triggers[n] = replace(trigger, query=query, threshold=trigger.threshold / CORES)
    found.least, found.most = 1, MOST
    return found


@contextmanager
def running(release: Path, folder: Path) -> Iterator[tuple[str, Loop]]:
    """HAProxy's address and the loop, not yet entered, over one replica that is ready."""
    settings = {"workers": "1", "queue": "1000", "deadline_s": "20", "drain_s": str(DRAIN_S), "proxies": "127.0.0.1"}
    replicas = [Serving(release, folder / f"replica-{n}.log", **settings) for n in range(MOST)]
    fleet = Fleet(replicas, [Quota(str(n)) for n in range(MOST)])
    places = [r.url.removeprefix("http://") for r in replicas]
    front, watcher = free_port(), free_port()
    servers = "\n".join(f"  server replica-{n} {place}" for n, place in enumerate(places))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=front, servers=servers))
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(targets=", ".join(f'"{place}"' for place in places)))
    commands = [
        [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")],
        [
            program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{watcher}",
        ],
    ]  # fmt: skip
    url, prometheus = f"http://127.0.0.1:{front}", f"http://127.0.0.1:{watcher}"
    others: list[subprocess.Popen] = []
    try:
        with (folder / "others.log").open("w") as log:
            others += [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        fleet.scale(1)
        until(
            lambda: answers(f"{url}/readyz", 5) and answers(f"{prometheus}/-/ready", 5), "a replica answers through HAProxy", 120
        )
        yield url, Loop(fleet, prometheus, scaler())
    finally:
        fleet.close()
        for process in others:
            process.terminate()
            process.wait(30)
