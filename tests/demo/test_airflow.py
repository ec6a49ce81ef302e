"""The terminal's client of Airflow: a slow answer is asked for again, unless the call changes something."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tasks.demo.airflow import QUESTIONS, Airflow
from tasks.errors import VitrineError


@pytest.fixture
def slow() -> Iterator[tuple[Airflow, list[str]]]:
    """A server that answers a path's third call only, and what it was asked."""
    asked: list[str] = []
    done = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            if len(asked) < 3 or self.path.endswith("never"):
                done.wait(30)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"state": "success"}')

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = Airflow(f"http://127.0.0.1:{server.server_port}", "admin", "secret")
    client.client.timeout = httpx.Timeout(0.2)
    yield client, asked
    done.set()
    server.shutdown()
    server.server_close()


def test_a_question_is_asked_again_until_it_is_answered(slow: tuple[Airflow, list[str]]) -> None:
    client, asked = slow
    assert client.run("train_encoder", "one") == {"state": "success"}
    assert asked == ["GET /api/v2/dags/train_encoder/dagRuns/one"] * 3


def test_what_never_answers_is_named_and_what_changes_something_is_asked_once(slow: tuple[Airflow, list[str]]) -> None:
    client, asked = slow
    with pytest.raises(VitrineError, match="does not answer"):
        client.run("train_encoder", "never")
    assert len(asked) == QUESTIONS
    with pytest.raises(VitrineError, match="does not answer"):
        client.call("POST", "/never")
    assert len(asked) == QUESTIONS + 1
