"""Answers over real sockets: the head and the body arrive together, nothing is held back that nobody adds to, nobody idles for ever."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn

from serving.one_write import OneWriteProtocol
from tests.running import until
from tests.servers import free_port

later = threading.Event()


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """/whole: one body; /slow: its second half when `later` is set; /empty: no content; /like: a body that looks like a head."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    bodies = {"/whole": [b"w" * 5000], "/slow": [b"a" * 10, b"b" * 10], "/empty": [b""], "/like": [b"HTTP/1.1 200 OK\r\n\r\n"]}[
        path
    ]
    length = str(sum(len(b) for b in bodies)).encode()
    headers = [] if path == "/empty" else [(b"content-length", length)]
    await send({"type": "http.response.start", "status": 204 if path == "/empty" else 200, "headers": headers})
    if path == "/slow":
        await asyncio.to_thread(later.wait, 20)
    for n, body in enumerate(bodies):
        await send({"type": "http.response.body", "body": body, "more_body": n + 1 < len(bodies)})


@contextmanager
def serving(keep_alive_s: int = 75, **limits: Any) -> Iterator[int]:
    """The port of a server of the application."""
    later.clear()
    port = free_port()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http=partial(OneWriteProtocol, **limits), lifespan="off", log_level="warning",
        timeout_keep_alive=keep_alive_s,
    )  # type: ignore[arg-type]  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield port
    finally:
        later.set()
        server.should_exit = True
        thread.join(20)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with serving() as port, connect(port) as opened:
        yield opened


def ask(connection: socket.socket, path: str, method: str = "GET") -> None:
    connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


def test_an_answer_arrives_in_one_piece(connection: socket.socket) -> None:
    for _ in range(3):
        ask(connection, "/whole")
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"w" * 5000)


def test_a_head_goes_alone_when_its_body_takes_a_while(connection: socket.socket) -> None:
    ask(connection, "/slow")
    assert connection.recv(65536).endswith(b"\r\n\r\n")
    later.set()
    body = b""
    while len(body) < 20:
        body += connection.recv(65536)
    assert body == b"a" * 10 + b"b" * 10


def test_answers_without_a_body_arrive_too_and_the_next_one_after_them(connection: socket.socket) -> None:
    for path, method, status in (("/empty", "GET", b"204"), ("/whole", "HEAD", b"200"), ("/empty", "GET", b"204")):
        ask(connection, path, method)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.endswith(b"\r\n\r\n")


def test_a_body_that_looks_like_a_head_is_sent_as_well(connection: socket.socket) -> None:
    ask(connection, "/like")
    assert connection.recv(65536).endswith(b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    ask(connection, "/whole")
    assert connection.recv(65536).endswith(b"w" * 5000)


def test_requests_sent_at_once_are_answered_in_order(connection: socket.socket) -> None:
    connection.sendall(b"GET /like HTTP/1.1\r\nhost: x\r\n\r\nGET /whole HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b"w" * 5000)


def dribbled(connection: socket.socket) -> bool:
    """Sends a head that never ends, byte by byte: whether the other side closes in the end."""
    connection.sendall(b"GET /whole HTTP/1.1\r\nx: ")
    connection.settimeout(0.05)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            connection.sendall(b"x")
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
            ask(one, "/whole")
            assert one.recv(65536).endswith(b"w" * 5000)
        blank.sendall(b"\r\n")
        assert dribbled(slow)
        assert blank.recv(65536) == b""


def test_neither_a_slow_answer_nor_a_kept_connection_is_cut_by_the_time_for_a_head() -> None:
    with serving(head_s=0.3) as port, connect(port) as opened:
        for piece in (b"GET /slow HTTP/1.1\r\n", b"host: x\r\n", b"\r\n"):
            opened.sendall(piece)
            time.sleep(0.01)
        time.sleep(0.6)
        later.set()
        answer = b""
        while not answer.endswith(b"b" * 10):
            answer += opened.recv(65536)
        time.sleep(0.6)
        ask(opened, "/whole")
        assert opened.recv(65536).endswith(b"w" * 5000)


def test_connections_beyond_the_most_are_closed_until_there_is_room() -> None:
    with serving(most=2) as port, connect(port) as one, connect(port) as two:
        for opened in (one, two):
            ask(opened, "/whole")
            assert opened.recv(65536).endswith(b"w" * 5000)
        before = OneWriteProtocol.turned_away
        with connect(port) as third:
            assert third.recv(65536) == b""
        assert OneWriteProtocol.turned_away == before + 1
        one.close()

        def room() -> bool:
            with connect(port) as fourth, suppress(ConnectionError):
                ask(fourth, "/whole")
                return fourth.recv(65536).endswith(b"w" * 5000)
            return False

        until(room)
