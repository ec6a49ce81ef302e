"""Answers over real sockets: the head and the body arrive together, and nothing is held back that nobody adds to."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn

from serving.one_write import OneWriteProtocol
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


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    later.clear()
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, http=OneWriteProtocol, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
            yield opened
    finally:
        later.set()
        server.should_exit = True
        thread.join(20)


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
