"""What a stranger may send to hurt a replica, as a process of its own: `python -m tests.benchmarks.attacks NAME PORT SECONDS`."""

import gzip
import http.client
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

from tests.load import json_request, photo_request, request

THREADS = 4
PAUSE_S = 0.01
"""Between two requests of one thread: answers that refuse come at once, and the attacker's own work is not what is measured."""
SIDE = 4900
"""24 megapixels: just within the limits."""

Send = Callable[[int], None]
"""Sends one attack to a port and waits for what comes."""


def posted(message: bytes) -> Send:
    """Sends a whole request, reads what is answered."""

    def send(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(message)
            connection.recv(65_536)

    return send


def headers(port: int) -> None:
    """60 MB of headers."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        for n in range(600):
            connection.sendall(b"x%d: " % n + b"y" * 100_000 + b"\r\n")


def slow_body(port: int) -> None:
    """A photo of 5 MB that comes a byte at a time."""
    head = request("POST", "/v1/search", content_type="multipart/form-data; boundary=x", content_length=str(5 * 10**6))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.2)


def silent(port: int) -> None:
    """A connection that says nothing."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.recv(1)


def encoded(kind: str, picture: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def flat(mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), 128 if mode != "RGB" else (120, 80, 60))


def progressive(scans: int) -> bytes:
    """A progressive JPEG of 24 megapixels whose last scan comes again and again."""
    data = encoded("JPEG", flat(), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * (scans - 10) + data[-2:]


def png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 8, (SIDE, SIDE, 3), dtype=np.uint8)
    noise[:, 1000:] = 0
    return encoded("PNG", Image.fromarray(noise), compress_level=1)


def attacks() -> dict[str, tuple[Callable[[], Send], int]]:
    """What prepares an attack, and how many do it at once, by name."""
    many = json.dumps({"product_id": "p", "filter": {"or": [{}] * 20_000}}).encode()
    bomb = gzip.compress(bytes(13 * 2**20))
    json_gzip = {"content_encoding": "gzip"}
    gif = encoded("GIF", Image.new("P", (20, 20)))
    return {
        "60 MB of headers": (lambda: headers, THREADS),
        "progressive JPEG, 300 scans": (lambda: posted(photo_request(progressive(300))), THREADS),
        "progressive JPEG, 64 scans": (lambda: posted(photo_request(progressive(64))), THREADS),
        "PNG of 24 megapixels": (lambda: posted(photo_request(png())), THREADS),
        "fax TIFF": (lambda: posted(photo_request(encoded("TIFF", flat("1"), compression="group4"))), THREADS),
        "compressed TIFF": (lambda: posted(photo_request(encoded("TIFF", flat("L"), compression="tiff_lzw"))), THREADS),
        "GIF with 4 MB of comments": (
            lambda: posted(photo_request(gif[:13] + b"!\xfe" + b"\1c" * 2_000_000 + gif[13:])),
            THREADS,
        ),
        "JPEG with 5 MB of fill": (lambda: posted(photo_request(b"\xff\xd8" + b"\xff" * 5_000_000)), THREADS),
        "filter of 20,000 empty objects": (lambda: posted(request("POST", "/v1/search", many, "application/json")), THREADS),
        "gzip that grows to 13 MB": (
            lambda: posted(request("POST", "/v1/search", bomb, "application/json", **json_gzip)),
            THREADS,
        ),
        "vectors": (lambda: posted(json_request({"vector": [0.5] * 4096})), THREADS),
        "160 slow bodies": (lambda: slow_body, 160),
        "1,200 silent connections": (lambda: silent, 1200),
    }


def main(name: str, port: int, seconds: float) -> None:
    """Prints a line once the attack is prepared, waits for one on standard input, attacks for `seconds`."""
    prepare, threads = attacks()[name]
    send = prepare()
    print("prepared", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds

    def loop() -> None:
        while time.monotonic() < end:
            with suppress(OSError, http.client.HTTPException):
                send(port)
            time.sleep(PAUSE_S)

    for _ in range(threads):
        threading.Thread(target=loop, daemon=True).start()
    time.sleep(seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
