"""Limits over real sockets: nobody idles for ever, heads are bounded, and so are connections."""

import asyncio
import json
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn

from serving.api import connection_limits
from serving.api.connection_limits import LimitedHttpProtocol
from serving.api.open_connections import OpenConnections
from tests.running import until
from tests.servers import free_port

later = threading.Event()


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """/whole: one body; /slow: its second half when `later` is set; /read: what was sent, once it is whole."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    bodies = {
        "/whole": [b"w" * 5000],
        "/healthz": [b"alive"],
        "/slow": [b"a" * 10, b"b" * 10],
        "/read": [b"r" * 10],
        "/large": [bytes(65536)] * 300,
    }[path]
    more = path == "/read"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
    headers = [(b"content-length", str(sum(len(b) for b in bodies)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path == "/slow":
        await asyncio.to_thread(later.wait, 120)
    for n, body in enumerate(bodies):
        await send({"type": "http.response.body", "body": body, "more_body": n + 1 < len(bodies)})


@contextmanager
def serving(keep_alive_s: int = 75, **limits: Any) -> Iterator[int]:
    """The port of a server of the application."""
    later.clear()
    port = free_port()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http=partial(LimitedHttpProtocol, **limits), lifespan="off", log_level="warning",
        timeout_keep_alive=keep_alive_s,
    )  # type: ignore[arg-type]  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield port
    finally:
        later.set()
        server.should_exit = True
        thread.join(60)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def ask(connection: socket.socket, path: str = "/whole", more: bytes = b"") -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n".encode() + more + b"\r\n")


def answered(connection: socket.socket, end: bytes = b"w" * 5000) -> bool:
    """Whether an answer comes that ends so, before the other side closes."""
    answer = b""
    while not answer.endswith(end):
        piece = connection.recv(65536)
        if not piece:
            return False
        answer += piece
    return True


def dribbled(connection: socket.socket) -> bool:
    """Sends a head that never ends, byte by byte: whether the other side closes in the end."""
    connection.settimeout(0.05)
    end, sent = time.monotonic() + 60, b"GET /whole HTTP/1.1\r\nx: "
    while time.monotonic() < end:
        try:
            connection.sendall(sent)
            sent = b"x"
            return connection.recv(65536) == b""
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_who_never_asks_or_never_ends_to_ask_is_closed() -> None:
    with serving(head_s=0.3) as port, connect(port) as silent, connect(port) as slow:
        assert dribbled(slow)
        assert silent.recv(65536) == b""


def test_a_later_head_has_the_time_of_an_idle_connection() -> None:
    with serving(keep_alive_s=1, head_s=20) as port, connect(port) as slow, connect(port) as blank:
        for one in (slow, blank):
            ask(one)
            assert answered(one)
        blank.sendall(b"\r\n")
        assert dribbled(slow)
        with suppress(ConnectionError):  # the empty line may have come after the close
            assert blank.recv(65536) == b""


def test_neither_a_slow_answer_nor_a_kept_connection_is_cut_by_the_time_for_a_head() -> None:
    with serving(head_s=6) as port, connect(port) as slow, connect(port) as kept:
        for piece in (b"GET /slow HTTP/1.1\r\n", b"host: x\r\n", b"\r\n"):
            slow.sendall(piece)
            time.sleep(0.01)
        ask(kept)
        assert answered(kept)
        time.sleep(7)
        later.set()
        assert answered(slow, b"b" * 10)
        ask(kept)
        assert answered(kept)


def refused_head(connection: socket.socket, sent: Iterator[bytes]) -> bool:
    """Sends pieces until an answer comes or none is left: whether the answer is 431 with a problem, before the other side closes."""
    with suppress(ConnectionError):
        for piece in sent:
            connection.sendall(piece)
            if select.select([connection], [], [], 0.02)[0]:
                break
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body or b"{}")
    return head.startswith(b"HTTP/1.1 431 ") and problem["detail"].startswith("the request line and headers have more than")


LINE = b"GET /whole HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /whole?" + b"q" * 5000 + b" HTTP/1.1\r\n\r\n",
        LINE + b"x: " + b"y" * 5000 + b"\r\n\r\n",
        LINE + b"a: b\r\n" * 1000 + b"\r\n",
        LINE + b"a" * 5000 + b": b\r\n\r\n",
    ],
    ids=["address", "one header", "many headers", "name"],
)
def test_a_head_that_is_too_large_is_told_so_and_the_connection_closed(head: bytes) -> None:
    with serving(max_head_bytes=4096) as port:
        with connect(port) as opened:
            assert refused_head(opened, iter([head]))
        with connect(port) as opened:
            assert refused_head(opened, (head[n : n + 700] for n in range(0, len(head), 700))), "in pieces"
        with connect(port) as opened:
            for _ in range(3):  # what fits is answered, again and again
                ask(opened, more=b"a: b\r\n" * 400)
                assert answered(opened)
            assert refused_head(opened, iter([head]))


@pytest.mark.parametrize("start", [LINE + b"x: ", LINE, LINE[:4] + b"/"], ids=["value", "name", "address"])
def test_a_head_that_never_ends_is_cut_though_the_parser_keeps_it_to_itself(start: bytes) -> None:
    with serving(max_head_bytes=4096) as port, connect(port) as opened:
        assert refused_head(opened, iter([start, *[b"y" * 1000] * 9]))


def test_trailers_are_bounded_as_headers_are() -> None:
    chunked = b"GET /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    with serving(max_head_bytes=4096) as port:
        with connect(port) as opened:
            opened.sendall(chunked + b"a: b\r\n\r\n")
            assert answered(opened, b"r" * 10)
        for trailers in (b"a: b\r\n" * 5000, b"a: " + b"b" * 50_000):
            with connect(port) as opened:
                opened.sendall(chunked)
                for n in range(0, len(trailers), 1000):
                    with suppress(ConnectionError):
                        opened.sendall(trailers[n : n + 1000])
                with suppress(ConnectionError):
                    assert opened.recv(65536) == b""


def test_bodies_of_any_size_are_no_heads() -> None:
    body = b"b" * 10**6
    with serving(max_head_bytes=4096) as port, connect(port) as opened:
        for _ in range(2):
            opened.sendall(b"GET /read HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            assert answered(opened, b"r" * 10)


def test_many_small_requests_at_once_are_no_large_head() -> None:
    with serving(max_head_bytes=1024) as port, connect(port) as opened:
        opened.sendall((LINE + b"\r\n") * 200 + LINE[:-2] + b"\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := opened.recv(65536):
            answer += piece
        assert answer.count(b"HTTP/1.1 200 OK") == 201


def status(connection: socket.socket, path: str) -> int:
    """The status of the answer; 0 where the other side closes without one."""
    with suppress(ConnectionError):
        ask(connection, path)
        return int((connection.recv(65536).split() or [b"", b"0"])[1])
    return 0


def test_beyond_the_most_connections_the_one_that_is_silent_longest_makes_room() -> None:
    with serving(open_connections=OpenConnections(2)) as port, connect(port) as one, connect(port) as two:
        ask(two)
        assert answered(two)
        before = OpenConnections.turned_away
        with connect(port) as third:
            ask(third)
            assert answered(third)
            assert one.recv(65536) == b""
            assert OpenConnections.turned_away == before + 1
            ask(two)
            assert answered(two)


def test_a_thousand_silent_connections_keep_nobody_out() -> None:
    with serving(open_connections=OpenConnections(50)) as port, ExitStack() as opened:
        for _ in range(200):
            opened.enter_context(connect(port))
        with connect(port) as last:
            ask(last)
            assert answered(last)


def test_while_all_connections_are_at_work_only_health_is_answered() -> None:
    with serving(open_connections=OpenConnections(2)) as port, connect(port) as one, connect(port) as two:
        for busy in (one, two):
            ask(busy, "/slow")
            assert busy.recv(10).startswith(b"HTTP/1.1 2")
        with connect(port) as health, connect(port) as other:
            assert status(health, "/healthz") == 200
            assert status(health, "/healthz?again") == 200
            assert status(health, "/whole") == 503
            assert status(other, "/whole") == 503
            assert other.recv(65536) == b""
        later.set()
        assert answered(one, b"b" * 10)
        one.close()

        def room() -> bool:
            with connect(port) as fourth:
                return status(fourth, "/whole") == 200

        until(room)


def test_one_address_holds_its_share_of_connections_and_a_trusted_proxy_all() -> None:
    def busy(port: int, count: int, opened: ExitStack) -> list[int]:
        return [status(opened.enter_context(connect(port)), "/slow") for _ in range(count)]

    with serving(open_connections=OpenConnections(4, 0.5)) as port, ExitStack() as opened:
        assert busy(port, 3, opened) == [200, 200, 503]
        elsewhere = opened.enter_context(socket.create_connection(("127.0.0.1", port), 60, source_address=("127.0.0.2", 0)))
        ask(elsewhere)
        assert answered(elsewhere)
    for proxies in ("127.0.0.1", "127.0.0.0/24"):
        with serving(open_connections=OpenConnections(4, 0.5, (proxies,))) as port, ExitStack() as opened:
            assert busy(port, 5, opened) == [200, 200, 200, 200, 503]


def test_who_does_not_read_its_answers_makes_room_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "LINGER_S", 0.1)
    held = OpenConnections(1)
    with serving(open_connections=held) as port, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        ask(deaf, "/large")
        until(lambda: any(c.cycle is not None and not c.cycle.response_complete for c in held.silent))  # type: ignore[attr-defined]
        with connect(port) as other:
            ask(other)
            assert answered(other)
        deaf.settimeout(60)
        with suppress(ConnectionError):
            while deaf.recv(65536):
                pass


def test_who_sends_a_body_slowly_makes_room_for_who_comes() -> None:
    with serving(open_connections=OpenConnections(2)) as port, connect(port) as slow, connect(port) as working:
        slow.sendall(b"GET /read HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nh")
        ask(working, "/slow")
        with connect(port) as other:
            ask(other)
            assert answered(other)
            assert slow.recv(65536) == b""
            later.set()
            assert answered(working, b"b" * 10)
