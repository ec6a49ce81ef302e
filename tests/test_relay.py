"""What the relay does to HTTP: 503, resets, half answers, and nothing at all once it is cut."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.relay import Relay
from tests.running import until

BODY = b"x" * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def relay() -> Iterator[Relay]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        relay = Relay(server.server_port)
        try:
            yield relay
        finally:
            relay.cut()
            server.shutdown()
            thread.join()


def ask(relay: Relay) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{relay.port}/", timeout=60, trust_env=False)


def test_a_share_of_requests_meets_each_fault_in_turn_and_the_others_pass(relay: Relay) -> None:
    assert ask(relay).content == BODY
    relay.faults, relay.share = ("503", "reset", "truncated", "torn"), 1.0
    assert (ask(relay).status_code, relay.met["503"]) == (503, 1)
    with pytest.raises(httpx.NetworkError):
        ask(relay)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        ask(relay)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        ask(relay)
    relay.share = 0.0
    assert ask(relay).content == BODY
    assert relay.met == {"503": 1, "reset": 1, "truncated": 1, "torn": 1}


def test_a_relay_that_is_cut_refuses_until_it_is_started_again(relay: Relay) -> None:
    relay.cut()
    with pytest.raises(httpx.ConnectError):
        ask(relay)
    relay.start()
    assert ask(relay).content == BODY


def test_a_connection_that_is_over_is_closed_whichever_end_closed_it(relay: Relay) -> None:
    for _ in range(50):
        assert ask(relay).content == BODY
    relay.faults, relay.share = ("reset",), 1.0
    for _ in range(10):
        with pytest.raises(httpx.NetworkError):
            ask(relay)
    until(lambda: all(p.near.fileno() < 0 and p.far.fileno() < 0 for p in relay.open))
