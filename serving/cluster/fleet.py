"""Service discovery, probing and load balancing of a gateway's shard processes.

Which process holds which shards is not configured: each reports it when probed. The setting or the file names only addresses; a
name that resolves to several (a headless service of Kubernetes) stands for all of them.
"""

import json
import logging
import random
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from serving.cluster.wire import MAX_BYTES, STATE

log = logging.getLogger(__name__)

CONNECT_S = 0.3
PROBE_TIMEOUT_S = 1.0
RESOLVE_S = 2.0
MAX_IDLE = 64
MAX_REQUESTS = 256
"""Most requests in flight to all shard processes: one thread each, started on demand."""


class ConnectionFailed(OSError):
    """The connection failed or broke, the answer was not HTTP, or it did not arrive in time."""


class Backend:
    """One shard process. `up` while it answers; `ready`: the versions it serves, as "version|digest"."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.name = host, port, f"{host}:{port}"
        self.up = False
        self.reason = "not asked yet"
        self.shards: frozenset[int] = frozenset()
        self.ready: frozenset[str] = frozenset()
        self.versions: dict[str, dict[str, str]] = {}
        self.outstanding = 0
        self.http = urllib3.HTTPConnectionPool(host, port, maxsize=MAX_IDLE, retries=False)
        self.stop = threading.Event()
        self.lock = threading.Lock()

    def request(
        self, method: str, path: str, limit_s: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Sends a request over a pooled connection; returns status and body. Raises ConnectionFailed."""
        timeout = urllib3.Timeout(connect=min(CONNECT_S, max(limit_s, 1e-3)), read=max(limit_s, 1e-3))
        try:
            response = self.http.urlopen(method, path, body=body, headers=headers, timeout=timeout, preload_content=False)
            try:
                content = response.read(MAX_BYTES + 1, decode_content=False)
                if len(content) > MAX_BYTES:
                    response.close()
                    raise ConnectionFailed(f"an answer of more than {MAX_BYTES} bytes")
                return response.status, content
            finally:
                response.release_conn()
        except urllib3.exceptions.TimeoutError:
            raise ConnectionFailed(f"no answer within {limit_s:.2g} s") from None
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionFailed(str(error)) from None

    def count(self, change: int) -> None:
        with self.lock:
            self.outstanding += change

    def mark_down(self, why: str) -> None:
        """Takes the process out of rotation until a probe succeeds."""
        if self.up:
            log.warning("shard process %s is down: %s", self.name, why)
        self.up, self.reason = False, why

    def probe(self) -> None:
        """Reads the process's shards and versions. Never raises."""
        try:
            _, answer = self.request("GET", STATE, PROBE_TIMEOUT_S)
            told = json.loads(answer)
            shards, versions = frozenset(int(s) for s in told["shards"]), dict(told["versions"])
            ready = frozenset(f"{v}|{s['digest']}" for v, s in versions.items() if s["state"] == "ready")
        except (ConnectionFailed, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            self.mark_down(str(error) or type(error).__name__)
            return
        if not self.up:
            log.info("shard process %s is up: shards %s", self.name, sorted(shards))
        self.shards, self.ready, self.versions, self.reason, self.up = shards, ready, versions, "", True

    def watch(self, every_s: float) -> None:
        """Probes until `stop` is set."""
        while not self.stop.is_set():
            self.probe()
            self.stop.wait(every_s)
        self.up, self.reason = False, "no longer in the shard map"
        self.http.close()

    def describe(self) -> dict[str, Any]:
        versions = {v: s["state"] + (f": {s['reason']}" if s.get("reason") else "") for v, s in self.versions.items()}
        return {"address": self.name, "up": self.up, "reason": self.reason, "shards": sorted(self.shards), "versions": versions}


class Fleet:
    """All shard processes. `addresses` gives their URLs; they are resolved again every `RESOLVE_S`."""

    def __init__(self, addresses: Callable[[], list[str]], probe_s: float = 0.5, chance: random.Random | None = None) -> None:
        self.addresses, self.probe_s, self.random = addresses, probe_s, chance or random.Random()
        self.backends: dict[str, Backend] = {}
        self.error = ""
        self.requests = ThreadPoolExecutor(MAX_REQUESTS, "shard-request")

    def follow(self) -> None:
        """Adds processes at new addresses and drops those that are gone. Never raises; an unreadable shard map changes nothing."""
        try:
            targets = {f"{host}:{port}": (host, port) for url in self.addresses() for host, port in resolve(url)}
        except (OSError, ValueError) as error:
            self.error = f"the shard map cannot be read: {error}"
            return
        self.error = ""
        for name in set(self.backends) - set(targets):
            self.backends.pop(name).stop.set()
        for name in set(targets) - set(self.backends):
            backend = self.backends[name] = Backend(*targets[name])
            threading.Thread(target=backend.watch, args=(self.probe_s,), name=f"probe {name}", daemon=True).start()

    def close(self) -> None:
        for backend in self.backends.values():
            backend.stop.set()
        self.requests.shutdown(wait=False, cancel_futures=True)

    def holders(self, shard: int, version_key: str) -> list[Backend]:
        """The processes that are up and hold this shard of this version ("version|digest")."""
        return [b for b in list(self.backends.values()) if b.up and shard in b.shards and version_key in b.ready]

    def choose(self, shard: int, version_key: str, tried: set[str]) -> Backend | None:
        """Chooses a process not tried yet: of two drawn at random, the one with fewer requests in flight.

        "The power of two choices": the longest queue grows as log log n rather than log n / log log n
        (Mitzenmacher, IEEE TPDS 12(10), 2001).
        """
        found = [b for b in self.holders(shard, version_key) if b.name not in tried]
        if len(found) <= 1:
            return found[0] if found else None
        return min(self.random.sample(found, 2), key=lambda b: b.outstanding)

    def missing_shards(self, version: str, digest: str, shards: int) -> list[tuple[int, str]]:
        """The shards of this version that no process that is up has ready, each with the reason."""
        version_key = f"{version}|{digest}"
        return [(s, self._missing_reason(s, version, digest)) for s in range(shards) if not self.holders(s, version_key)]

    def any_up(self, shard: int) -> bool:
        """Whether any process with this shard is up."""
        return any(b.up and shard in b.shards for b in list(self.backends.values()))

    def load_failure(self, shard: int, version: str) -> str:
        """Why every process with this shard failed to load a version; "" unless all of them did."""
        mine = [b for b in list(self.backends.values()) if b.up and shard in b.shards]
        told = [b.versions.get(version, {}) for b in mine]
        return told[0].get("reason", "") if mine and all(t.get("state") == "failed" for t in told) else ""

    def describe(self) -> list[dict[str, Any]]:
        return [b.describe() for b in sorted(self.backends.values(), key=lambda b: b.name)]

    def _missing_reason(self, shard: int, version: str, digest: str) -> str:
        mine = [b for b in list(self.backends.values()) if b.up and shard in b.shards]
        if not mine:
            return f"no process that holds shard {shard} answers"
        told = mine[0].versions.get(version)
        if told is None:
            return f"shard {shard} ({mine[0].name}) does not know version {version} yet"
        if told["state"] == "ready":
            return f"shard {shard} ({mine[0].name}) holds another content under version {version}"
        return f"shard {shard} ({mine[0].name}) is {told['state']}{': ' + told['reason'] if told.get('reason') else ''}"


def resolve(url: str) -> list[tuple[str, int]]:
    """Resolves a URL to its (address, port) pairs. Raises OSError or ValueError naming it."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    if not parts.hostname or parts.port is None or parts.scheme not in ("", "http"):
        raise ValueError(f"{url!r} is not an address such as http://shard-0:8000")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise OSError(f"{parts.hostname} does not resolve") from None
    fourth = [f for f in found if f[0] == socket.AF_INET]  # one process is one address, where it has both kinds
    return sorted({(str(f[4][0]), parts.port) for f in fourth or found})


def addresses_of(urls: tuple[str, ...], file: str) -> Callable[[], list[str]]:
    """A function that gives the shard URLs: those of the setting, or of a file with one a line, read at every call."""

    def read() -> list[str]:
        if not file:
            return list(urls)
        lines = (line.split("#")[0].strip() for line in Path(file).read_text().splitlines())
        return [line for line in lines if line]

    return read
