"""A load generator in a process of its own: real HTTP over kept connections, in a closed loop or at a steady rate.

    with Load(url, [photo_request(data), json_request({"product_id": "p001"})], clients=16, seconds=10) as load:
        …                                  # the replica is under load meanwhile
        shots = load.wait()
    shots.qps, shots.ms(50), shots.failed, set(shots.version)

Closed: each client sends its next request when it has the answer to the last. Open (`rate` a second): requests are due at random
times of that rate whatever the replica does, and an answer's time counts from when its request was due. Every shot keeps when
it was sent, how long it took, its status (0: no answer), the versions the answer names, and a digest of its results.
"""

import asyncio
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = "vitrine-load"
MARK = b"@@@@@@@@"
"""Eight digits; the first ones change from one use of a request to the next."""
VERSION = re.compile(rb'"index":"([^"]*)","encoder":"([^"]*)"')
RESULTS = b'"results":[', b'],"coverage"'
SHARDS = re.compile(rb'"shards_ok":(\d+)')
TIMINGS = re.compile(rb'"timings_ms":(\{[^}]*\})')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
PATIENCE_S = 30.0
UNREAD_BYTES = 1 << 29
"""Answers are read when the load is over, or when so many bytes of them wait: what a client does with its answers is not what is
measured, and takes from the replica where both share the cores."""


def request(method: str, path: str, body: bytes = b"", kind: str = "", **headers: str) -> bytes:
    """One HTTP/1.1 request as it goes over the wire; header names may be written with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", "host: load"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += [f"content-type: {kind}", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_request(fields: dict[str, Any], path: str = "/v1/search", **headers: str) -> bytes:
    return request("POST", path, json.dumps(fields).encode(), "application/json", **headers)


def photo_request(photo: bytes, fields: dict[str, str] | None = None, path: str = "/v1/search", **headers: str) -> bytes:
    """A multipart search by a photo's bytes."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (fields or {}).items()
    ]
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="p.jpg"\r\ncontent-type: image/jpeg\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return request("POST", path, body, f"multipart/form-data; boundary={BOUNDARY}", **headers)


@dataclass(frozen=True)
class Shots:
    """One element per request, in the order of their answers. `at_s`: seconds since the epoch when it was sent (open: due)."""

    at_s: np.ndarray
    took_ms: np.ndarray
    status: np.ndarray
    request: np.ndarray
    version: np.ndarray
    encoder: np.ndarray
    digest: np.ndarray
    timings: np.ndarray
    shards: np.ndarray
    seconds: float
    cpu_s: float

    @property
    def ok(self) -> np.ndarray:
        return self.status == 200

    @property
    def failed(self) -> int:
        """How many were not answered 200."""
        return int((~self.ok).sum())

    @property
    def qps(self) -> float:
        return float(self.ok.sum() / self.seconds)

    def ms(self, percentile: float, which: np.ndarray | None = None) -> float:
        """A percentile of the times of the answers with status 200 (among `which` (n,) bool)."""
        chosen = self.took_ms[self.ok if which is None else self.ok & which]
        return float(np.percentile(chosen, percentile)) if len(chosen) else float("nan")

    def phase_ms(self, name: str) -> np.ndarray:
        """What the answers with status 200 say of one phase, in milliseconds; those that had no such phase are left out."""
        found = (json.loads(t).get(name) for t in self.timings[self.ok] if t)
        return np.array([ms for ms in found if ms is not None])


class Load:
    """A load generator's process; `with` ends it whatever happens. Several replicas: the clients are spread over them."""

    def __init__(
        self, url: str | list[str], requests: list[bytes], clients: int, seconds: float, rate: float = 0.0, seed: int = 0
    ) -> None:
        parts = [urlsplit(u) for u in ([url] if isinstance(url, str) else url)]
        places = [(p.hostname, p.port) for p in parts]
        self.folder = tempfile.TemporaryDirectory(prefix="load-")
        here = Path(self.folder.name)
        sizes = [len(r) for r in requests]
        (here / "requests").write_bytes(b"".join(requests))
        job = {"places": places, "sizes": sizes, "clients": clients, "seconds": seconds, "rate": rate, "seed": seed}
        (here / "job.json").write_text(json.dumps(job))
        self.process = subprocess.Popen([sys.executable, "-m", "tests.load", str(here)], cwd=Path(__file__).parents[1])

    def wait(self) -> Shots:
        """What was measured, once the load is over. Raises RuntimeError when the generator itself failed."""
        if self.process.wait():
            raise RuntimeError(f"the load generator ended with {self.process.returncode}")
        with np.load(Path(self.folder.name) / "shots.npz", allow_pickle=False) as kept:
            single = {"seconds", "cpu_s"}
            return Shots(**{n: float(kept[n]) if n in single else kept[n] for n in kept.files})

    def stop(self) -> Shots:
        """Ends the load before its time; what was measured until then."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        self.folder.cleanup()


def fire(url: str | list[str], requests: list[bytes], clients: int, seconds: float, rate: float = 0.0, seed: int = 0) -> Shots:
    """The same, waited for."""
    with Load(url, requests, clients, seconds, rate, seed) as load:
        return load.wait()


class Connection(asyncio.Protocol):
    """One kept connection with at most one request under way; the answer comes as (status, body), (0, b"") when there is none."""

    def __init__(self, where: tuple[str, int]) -> None:
        self.where = where
        self.transport: Any = None  # uvloop's are not asyncio.Transports
        self.data = bytearray()
        self.waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._answer(0, b"")

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        found = LENGTH.search(self.data, 0, end)
        size = int(found[1]) if found else 0
        if len(self.data) >= end + 4 + size:
            status, body = int(self.data[9:12]), bytes(self.data[end + 4 : end + 4 + size])
            self.data.clear()
            self._answer(status, body)

    def _answer(self, status: int, body: bytes) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result((status, body))

    async def ask(self, loop: asyncio.AbstractEventLoop, sent: bytes) -> tuple[int, bytes]:
        if self.transport is None or self.transport.is_closing():
            self.data.clear()
            try:
                await loop.create_connection(lambda: self, *self.where)
            except OSError:
                await asyncio.sleep(0.05)  # a replica that is away is not asked in a tight loop
                return 0, b""
        self.waiting = loop.create_future()
        self.transport.write(sent)
        timer = loop.call_later(PATIENCE_S, self.transport.abort)
        try:
            return await self.waiting
        finally:
            timer.cancel()


class Generator:
    """Sends the requests of one job and keeps the shots."""

    def __init__(self, job: dict[str, Any], requests: list[bytes]) -> None:
        self.job = job
        self.random = random.Random(job["seed"] or None)
        self.requests = [r.partition(MARK) for r in requests]
        self.used = [self.random.randrange(10**8)] * len(requests)
        self.places = job["places"]
        self.shots: list[tuple[float, float, int, int, bytes, bytes, str, bytes, int]] = []
        self.unread: list[tuple[float, float, int, int, bytes]] = []
        self.unread_bytes = 0
        self.next = 0

    async def run(self) -> float:
        """Runs to the end; gives how long it took."""
        self.loop = asyncio.get_running_loop()
        began, self.cpu_s = time.perf_counter(), time.process_time()
        self.until = began + self.job["seconds"]
        self.loop.add_signal_handler(signal.SIGINT, self.end)
        connections = [Connection(tuple(self.places[n % len(self.places)])) for n in range(self.job["clients"])]
        if self.job["rate"]:
            await self._open(connections)
        else:
            await asyncio.gather(*(self._closed(c) for c in connections))
        for connection in connections:
            if connection.transport is not None:
                connection.transport.close()
        return time.perf_counter() - began

    def end(self) -> None:
        """No further request; those under way are waited for."""
        self.until = time.perf_counter()

    async def _closed(self, connection: Connection) -> None:
        while time.perf_counter() < self.until:
            await self._shoot(connection, time.perf_counter())

    async def _open(self, connections: list[Connection]) -> None:
        """Requests that find every connection busy wait for one: their time runs from when they were due."""
        due: deque[float] = deque()
        woken = asyncio.Event()
        over = False

        async def serve(connection: Connection) -> None:
            while True:
                while not due:
                    if over:
                        return
                    woken.clear()
                    await woken.wait()
                await self._shoot(connection, due.popleft())

        serving = [asyncio.create_task(serve(c)) for c in connections]
        at = time.perf_counter()
        while at < self.until:
            at += self.random.expovariate(self.job["rate"])
            wait_s = at - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            due.append(at)
            woken.set()
        over = True
        woken.set()
        await asyncio.gather(*serving)

    async def _shoot(self, connection: Connection, began: float) -> None:
        number = self.next
        self.next = (number + 1) % len(self.requests)
        at = time.time() - (time.perf_counter() - began)
        status, body = await connection.ask(self.loop, self._request(number))
        took_ms = 1e3 * (time.perf_counter() - began)
        self.unread.append((at, took_ms, status, number, body))
        self.unread_bytes += len(body)
        if self.unread_bytes > UNREAD_BYTES:
            self.read()

    def read(self) -> None:
        """What the answers that wait say of themselves, added to the shots."""
        for at, took_ms, status, number, body in self.unread:
            version = VERSION.search(body)
            start, end = (body.find(mark) for mark in RESULTS)
            digest = hashlib.blake2b(body[start:end], digest_size=8).hexdigest() if 0 <= start < end else ""
            named = version.groups() if version else (b"", b"")
            timings, shards = TIMINGS.search(body), SHARDS.search(body)
            told = timings[1] if timings else b"", int(shards[1]) if shards else -1
            self.shots.append((at, took_ms, status, number, *named, digest, *told))
        self.unread, self.unread_bytes = [], 0

    def _request(self, number: int) -> bytes:
        before, mark, after = self.requests[number]
        if not mark:
            return before
        self.used[number] = (self.used[number] + 1) % 10**8
        return before + f"{self.used[number]:08d}"[::-1].encode() + after


def main(folder: Path) -> None:
    import uvloop

    job = json.loads((folder / "job.json").read_text())
    data, requests, start = (folder / "requests").read_bytes(), [], 0
    for size in job["sizes"]:
        requests.append(data[start : start + size])
        start += size
    generator = Generator(job, requests)
    seconds = uvloop.run(generator.run())
    cpu_s = time.process_time() - generator.cpu_s
    generator.read()
    columns = zip(*generator.shots, strict=True) if generator.shots else ([],) * 9
    at, took, status, number, version, encoder, digest, timings, shards = columns
    np.savez(
        folder / "shots.npz", at_s=np.array(at, np.float64), took_ms=np.array(took, np.float64), status=np.array(status, np.int64),
        request=np.array(number, np.int64), version=np.array([v.decode() for v in version], str),
        encoder=np.array([e.decode() for e in encoder], str), digest=np.array(digest, str),
        timings=np.array([t.decode() for t in timings], str), shards=np.array(shards, np.int64), seconds=seconds, cpu_s=cpu_s,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
