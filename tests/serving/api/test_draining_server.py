"""A process that is told to end answers for a while, and sends its clients elsewhere: over real sockets."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
import uvicorn

from serving.api.connection_limits import LimitedHttpProtocol
from serving.api.draining_server import DrainingServer
from serving.app import create_app
from serving.settings import ServingSettings
from serving.versions.version_source import FolderSource
from tests.running import until
from tests.servers import free_port


@contextmanager
def serving(folder: Path, drain_s: float, role: str = "all") -> Iterator[tuple[DrainingServer, threading.Thread]]:
    app = create_app(ServingSettings(role=role, shards=("0",)), FolderSource(folder))
    config = uvicorn.Config(
        app, port=free_port(), http=LimitedHttpProtocol, log_level="warning", ws="none", timeout_keep_alive=75
    )
    server = DrainingServer(config, app.state.process, drain_s)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server, thread
    finally:
        server.should_exit = server.force_exit = True
        thread.join(60)


def ask(connection: HTTPConnection, path: str = "/healthz") -> HTTPResponse:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize("role", ["all", "shard"])
def test_told_to_end_it_answers_kept_and_new_connections_once_more_each(tmp_path: Path, role: str) -> None:
    with serving(tmp_path, drain_s=60, role=role) as (server, _):
        kept = HTTPConnection("127.0.0.1", server.config.port)
        assert ask(kept).getheader("connection") is None
        server.should_exit = True
        until(lambda: server.process.draining)
        for connection in (kept, HTTPConnection("127.0.0.1", server.config.port)):
            answer = ask(connection)
            assert (answer.status, answer.getheader("connection")) == (200, "close")
            assert connection.sock is None, "the client has closed it, as it was asked to"


def test_load_balancers_see_it_go(tmp_path: Path) -> None:
    with serving(tmp_path, drain_s=60) as (server, _):
        server.should_exit = True
        until(lambda: server.process.draining)
        answer = ask(HTTPConnection("127.0.0.1", server.config.port), "/readyz")
        assert answer.status == 503
        assert b"told to end" in answer.body  # type: ignore[attr-defined]


def test_it_ends_when_the_time_is_over_and_at_a_second_interrupt(tmp_path: Path) -> None:
    with serving(tmp_path, drain_s=0.3) as (server, thread):
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
    with serving(tmp_path, drain_s=60) as (server, thread):
        server.should_exit = True
        until(lambda: server.process.draining)
        server.force_exit = True
        thread.join(60)
        assert not thread.is_alive()
