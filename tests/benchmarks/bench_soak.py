"""A replica for half an hour: shoppers, flips, and whatever a public address gets: its memory stays flat and nothing is a 500.

    python -m tests.benchmarks.bench_soak [--minutes 30] [--clients 2] [--out build/bench]

Shoppers search by photo without a pause while a version flips every half minute, each with another encoder, every fourth candidate
corrupt. Beside them: fuzzed multipart bodies, truncated and damaged JPEGs, bombs (a tiny file of many pixels, many frames), bodies
of 200 MB with and without a length, clients that send a byte now and then, and clients that leave in the middle. Asked for: no
answer is 500, shoppers get no failure, and memory at the end is within 5 % of what it was once caches were full. Writes soak.json.
"""

import argparse
import contextlib
import io
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

from tests.benchmarks.bench_flips import TOKEN, Watched
from tests.benchmarks.bench_serving import replica
from tests.benchmarks.editions import CORRUPT, editions, point
from tests.benchmarks.market import Market
from tests.load import MARK, Load, json_request, photo_request

FLIP_S = 30.0
GARBAGE_S = 0.5
EDITIONS = 4
HUGE = 200 * 2**20


class Garbage:
    """One bad request after the other, as raw bytes over a connection of its own; `seen` counts kinds and statuses."""

    def __init__(self, url: str, photos: list[bytes], seed: int = 1) -> None:
        where = urlsplit(url)
        self.where, self.photos, self.random = (where.hostname or "", where.port or 0), photos, random.Random(seed)
        self.seen: Counter[tuple[str, int]] = Counter()
        self.bombs = [_pixels(), _frames()]

    def throw(self, kind: Callable[[], Iterator[bytes]] | None = None) -> None:
        """Sends something bad of a kind, or of a kind drawn at random, and counts the answer."""
        kind = kind or self.random.choice(
            [
                self.fuzzed,
                self.fuzzed,
                self.truncated,
                self.damaged,
                self.bomb,
                self.long,
                self.endless,
                self.slow,
                self.gone,
                self.nonsense,
            ]
        )
        status = 0
        with contextlib.suppress(OSError), socket.create_connection(self.where, 20) as connection:
            with contextlib.suppress(OSError):  # a refusal may come, and the connection end, before all is sent
                for part in kind():
                    connection.sendall(part)
            if kind == self.gone:
                return
            connection.settimeout(40)
            answer = connection.recv(12)
            status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        self.seen[(kind.__name__, status)] += 1

    def fuzzed(self) -> Iterator[bytes]:
        """A multipart search with some of its bytes changed, lost or doubled."""
        head, _, body = photo_request(self.random.choice(self.photos)[:4000], {"k": "5", "filter": "{}"}).partition(b"\r\n\r\n")
        changed = bytearray(body)
        for _ in range(self.random.randint(1, 40)):
            at = self.random.randrange(min(len(changed), 600))
            changed[at : at + self.random.randint(0, 2)] = self.random.randbytes(self.random.randint(0, 3))
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
        yield b"\r\n".join([*lines, f"content-length: {len(changed)}".encode(), b"", b""]) + bytes(changed)

    def truncated(self) -> Iterator[bytes]:
        photo = self.random.choice(self.photos)
        yield photo_request(photo[: self.random.randrange(1, len(photo))])

    def damaged(self) -> Iterator[bytes]:
        photo = bytearray(self.random.choice(self.photos))
        for _ in range(20):
            photo[self.random.randrange(len(photo))] = self.random.randrange(256)
        yield photo_request(bytes(photo))

    def bomb(self) -> Iterator[bytes]:
        yield photo_request(self.random.choice(self.bombs))

    def long(self) -> Iterator[bytes]:
        """200 MB, announced."""
        yield f"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {HUGE}\r\n\r\n".encode()
        for _ in range(HUGE // 2**20):
            yield bytes(2**20)

    def endless(self) -> Iterator[bytes]:
        """200 MB, not announced."""
        yield b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n\r\n"
        for _ in range(HUGE // 2**20):
            yield b"100000\r\n" + bytes(2**20) + b"\r\n"
        yield b"0\r\n\r\n"

    def slow(self) -> Iterator[bytes]:
        """A byte now and then, for five seconds; then it leaves."""
        yield b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        for _ in range(10):
            time.sleep(0.5)
            yield b"{"
        raise OSError

    def gone(self) -> Iterator[bytes]:
        """Leaves in the middle of a photo."""
        whole = photo_request(self.random.choice(self.photos))
        yield whole[: len(whole) // 2]

    def nonsense(self) -> Iterator[bytes]:
        bodies: list[dict[str, Any]] = [
            {"vector": [0.0] * 512}, {"vector": [1e308] * 512}, {"text": "a mug"}, {"product_id": "x" * 900}, {"image": "@@@"},
            {"product_id": "P0000001", "filter": {"or": [{"price": {"lt": "many"}}]}}, {"product_id": "P0000001", "k": 10**9},
        ]  # fmt: skip
        yield json_request(self.random.choice(bodies))


def _pixels() -> bytes:
    """81 million pixels in a few kilobytes."""
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    return stream.getvalue()


def _frames() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("P", (2000, 2000), n) for n in range(30)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def memory(process: psutil.Process) -> float:
    """MiB that are the process's own: mapped files are the page cache's."""
    return process.memory_info().rss / 2**20 - process.memory_info().shared / 2**20


def run(made: Market, out: Path, minutes: float, clients: int) -> dict[str, Any]:
    stop = threading.Event()
    flips, statuses, rows = 0, Counter[int](), []
    with replica(made.release, out / "soak.log", ADMIN_TOKEN=TOKEN, POLL_S="0.2", BODY_S="10") as (url, process):
        watched, garbage = Watched(url, made.release), Garbage(url, made.photos)

        def throw() -> None:
            while not stop.wait(GARBAGE_S):
                garbage.throw()

        def shop() -> None:
            asked = [photo_request(p + MARK) for p in made.photos]
            while not stop.is_set():
                with Load(url, asked, clients, 20) as load:
                    statuses.update(load.wait().status.tolist())

        threads = [threading.Thread(target=throw), threading.Thread(target=throw), threading.Thread(target=shop)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        try:
            due, number = FLIP_S if minutes > 3 else 5.0, 0
            every = due
            while (now := time.monotonic() - began) < 60 * minutes:
                rows.append((now, memory(process)))
                if now >= due:
                    number, due = number + 1, due + every
                    if number % 4 == 0:
                        watched.load(CORRUPT, ("failed",))
                    else:
                        watched.flip(str(1 + (flips + 1) % EDITIONS))
                        flips += 1
                time.sleep(1.0)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        text = watched.client.get("/metrics").text
    point(made.release, blue="1", green="", live="1")
    answered = {
        line.split(" ")[0].removeprefix("vitrine_requests_total"): float(line.split(" ")[1])
        for line in text.splitlines()
        if line.startswith("vitrine_requests_total")
    }
    at, used = np.array(rows).T
    full = (at >= 60 * minutes / 3) & (at < 60 * minutes / 2)  # caches are full by then
    last = at >= 60 * minutes * 5 / 6
    return {
        "minutes": minutes, "flips": flips, "shoppers": {str(s): n for s, n in statuses.items()},
        "garbage": {f"{kind} {status}": n for (kind, status), n in sorted(garbage.seen.items())},
        "errors_500": sum(n for name, n in answered.items() if 'status="500"' in name), "answered": answered,
        "memory_mib": {
            "at_first": float(used[:3].mean()), "once_full": float(np.median(used[full])), "at_last": float(np.median(used[last])),
            "most": float(used.max()),
        },
        "growth": float(np.median(used[last]) / np.median(used[full]) - 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = run(editions(args.out, EDITIONS, args.rows), args.out, args.minutes, args.clients)
    print(f"{found['minutes']:g} minutes, {found['flips']} flips; shoppers' answers by status {found['shoppers']}")
    print(
        "garbage, by kind and status (0: the connection was closed): "
        + ", ".join(f"{k}: {n}" for k, n in found["garbage"].items())
    )
    print("own memory, MiB: " + ", ".join(f"{name} {mib:.0f}" for name, mib in found["memory_mib"].items()))
    told = {
        "no answer was 500": found["errors_500"] == 0,
        "shoppers got no failure": set(found["shoppers"]) == {"200"},
        f"memory stayed within 5 % ({found['growth']:+.1%})": found["growth"] <= 0.05,
    }
    for sentence, held in told.items():
        print(f"  {'holds        ' if held else 'DOES NOT HOLD'} {sentence}")
    (args.out / "soak.json").write_text(json.dumps(found | {"verdicts": told}, indent=1))


if __name__ == "__main__":
    main()
