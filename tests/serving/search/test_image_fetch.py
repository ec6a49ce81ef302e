"""Photos by address: allowed hosts, the very address that was checked, no private networks, caps; over real connections."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.contract.preprocess import ImageRejected
from serving.search.image_fetch import Fetcher, _public
from serving.settings import ServingSettings
from tests.serving.conftest import TOKEN

PHOTO = b"photo" * 1000


class Shop(BaseHTTPRequestHandler):
    """/photo, /caf%C3%A9%20%2F?a=%C3%A9, /long (100 MB), /slow, /cut, /none, and redirects: /to/<path>, /loop, /elsewhere, /bytes."""

    def do_GET(self) -> None:
        if self.path in ("/photo", "/caf%C3%A9%20%2F?a=%C3%A9"):
            self._body(PHOTO)
        elif self.path == "/bytes":
            self.send_response(302)
            self.send_header("Location", "/café %2F?a=é".encode().decode("latin-1"))
            self.end_headers()
        elif self.path.startswith("/to/") or self.path in ("/loop", "/elsewhere"):
            self.send_response(302)
            self.send_header("Location", {"/loop": "/loop", "/elsewhere": "http://metadata/latest"}.get(self.path, self.path[3:]))
            self.end_headers()
        elif self.path == "/cut":
            self._body(PHOTO, len(PHOTO) + 10)
        elif self.path == "/long":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self._write(bytes(2**20))
        elif self.path == "/slow":
            # With no length: the body ends with the connection, which http.client calls closed from the head on.
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        else:
            self.send_error(404)

    def _body(self, data: bytes, said: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(said or len(data)))
        self.end_headers()
        self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(10)


def fetcher(port: int, **changes: object) -> Fetcher:
    """Takes plain http from the test's own server under the name `shop`."""
    settings: dict = {"hosts": (f"shop:{port}",), "schemes": ("http",), "private": True, "resolve": lambda h, p: ["127.0.0.1"]}
    return Fetcher(**(settings | {"max_bytes": 2**20, "timeout_s": 60.0} | changes))


def refused(call: Callable[[], bytes]) -> str:
    with pytest.raises(ImageRejected) as error:
        call()
    return error.value.reason


def test_a_photo_is_fetched_also_through_redirects(port: int) -> None:
    for path in ("photo", "to/photo", "to/to/photo", "to/to/to/photo"):
        assert fetcher(port).fetch(f"http://shop:{port}/{path}") == PHOTO


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none", "missing"), ("long", "too_many_bytes"), ("slow", "timeout"), ("cut", "unreachable"), ("loop", "redirects"),
        ("to/to/to/to/photo", "redirects"), ("elsewhere", "forbidden_host"),
    ],
)  # fmt: skip
def test_what_is_no_photo_in_time_has_its_reason(port: int, path: str, reason: str) -> None:
    limit_s = 1.0 if reason == "timeout" else 60.0
    assert refused(lambda: fetcher(port, timeout_s=limit_s).fetch(f"http://shop:{port}/{path}")) == reason


@pytest.mark.parametrize(
    "url",
    [
        "http://shop/photo", "https://shop:{port}/photo", "http://other:{port}/photo", "ftp://shop:{port}/photo", "file:///etc/passwd",
        "http://user@shop:{port}/photo", "http://shop.evil:{port}/photo", "shop:{port}", "http://[::1", "http://shop:99999/", "",
    ],
)  # fmt: skip
def test_only_listed_hosts_are_asked(port: int, url: str) -> None:
    assert refused(lambda: fetcher(port).fetch(url.format(port=port))) == "forbidden_host"


def test_letters_beyond_ascii_are_encoded_and_what_is_encoded_stays(port: int) -> None:
    for path in ("café %2F?a=é", "caf%C3%A9%20%2F?a=%C3%A9", "bytes"):
        assert fetcher(port).fetch(f"http://shop:{port}/{path}") == PHOTO


def test_a_handshake_that_never_ends_is_a_timeout() -> None:
    """Byte by byte a TLS record comes, so that no single read waits for long."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def dribble() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16,384 bytes
                while True:
                    connection.sendall(b"\x02")
                    time.sleep(0.05)

        thread = threading.Thread(target=dribble)
        thread.start()
        port = server.getsockname()[1]
        assert refused(lambda: fetcher(port, timeout_s=1.0, schemes=("https",)).fetch(f"https://shop:{port}/photo")) == "timeout"
        thread.join(60)
        assert not thread.is_alive(), "the connection was cut"


def test_a_name_that_is_looked_up_for_too_long_is_a_timeout(port: int) -> None:
    answering = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        answering.wait(120)
        return ["127.0.0.1"]

    began = time.monotonic()
    try:
        assert refused(lambda: fetcher(port, timeout_s=0.2, resolve=slow).fetch(f"http://shop:{port}/photo")) == "timeout"
        assert time.monotonic() - began < 60
    finally:
        answering.set()


def test_a_name_that_does_not_resolve_is_unreachable(port: int) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError("unknown name")

    assert refused(lambda: fetcher(port, resolve=unknown).fetch(f"http://shop:{port}/photo")) == "unreachable"


def test_where_no_host_is_listed_nothing_is_fetched() -> None:
    assert refused(lambda: Fetcher().fetch("https://example.com/a.jpg")) == "not_enabled"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0",
        "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "255.255.255.255", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "64:ff9b:1::808:808", "fec0::1", "::7f00:1", "::808:808", "::ffff:0:127.0.0.1", "::", "ff0e::1", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_before_a_connection(address: str) -> None:
    assert not _public(address)
    guarded = Fetcher(("shop",), resolve=lambda h, p: ["8.8.8.8", address])
    assert refused(lambda: guarded.fetch("https://shop/a.jpg")) == "forbidden_address"


def test_public_addresses_are_public() -> None:
    assert all(_public(a) for a in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"))


def test_a_redirect_into_a_private_network_is_refused(port: int) -> None:
    """The name is resolved again for every address: what was public a moment ago may point inside now."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    guarded = fetcher(port, private=False, resolve=rebinding)
    assert refused(lambda: guarded.fetch(f"http://shop:{port}/photo")) == "forbidden_address"
    assert asked == ["shop"]


def test_over_http_a_photo_by_address_is_searched_and_its_refusal_is_a_sentence(home: Path, made: Path, port: int) -> None:
    photo = (made / "shop" / "photos" / "4-2.jpg").read_bytes()

    class Given(Fetcher):
        def fetch(self, url: str) -> bytes:
            return photo if url.endswith("/4-2.jpg") else super().fetch(url)

    app = create_app(ServingSettings(release=str(home / "release"), admin_token=TOKEN), fetcher=Given(("shop",)))
    app.state.replica.slots.refresh()
    with TestClient(app) as client:
        answer = client.post("/v1/search", json={"image_url": "https://shop/4-2.jpg"}).json()
        assert answer["results"][0]["product_id"] == "p004"
        assert "fetch" in answer["timings_ms"]
        other = client.post("/v1/search", json={"image_url": "https://other/a.jpg"})
        assert (other.status_code, other.json()["reason"]) == (422, "forbidden_host")
