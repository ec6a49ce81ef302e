"""`vitrine stream` in a process of its own, over a real MLflow and a real replica: changes are served within a moment, outages pass."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import httpx
import pytest

from tasks.demo.services import mlflow_service
from tasks.demo.supervisor import Supervisor
from tasks.pipelines.stream import Round, Stream
from tasks.registry import INDEX_MODEL
from tasks.settings import PROJECT, Settings
from tests.catalog.changes.refreshed import LiveShop
from tests.registered import TOKEN, Running
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT_S = 180
STREAM = """
import pytest
from tasks.cli import main
from tests.brief import measure_briefly
measure_briefly(pytest.MonkeyPatch())
main()
"""


class Streamed:
    """A shop that is served by one replica, and a stream process that is started and stopped by the test."""

    def __init__(self, home: Path, mlflow_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.mlflow = replace(Settings(), home=home / "mlflow", mlflow_uri=f"http://127.0.0.1:{free_port()}")
        (home / "mlflow" / "mlflow").mkdir(parents=True)
        shutil.copy(mlflow_tables, home / "mlflow" / "mlflow" / "mlflow.db")
        self.supervisor = Supervisor(home / "mlflow")
        self.start_mlflow()
        self.live = LiveShop(home, self.mlflow.mlflow_uri, monkeypatch)
        self.replica = Running(self.mlflow.mlflow_uri, home / "replica")
        self.live.environment |= {"VITRINE_SERVING_URLS": self.replica.url, "VITRINE_ADMIN_TOKEN": TOKEN, "VITRINE_BAKE_S": "0"}
        self.process: subprocess.Popen[bytes] | None = None

    def start_mlflow(self) -> None:
        service = mlflow_service(self.mlflow)
        self.supervisor.start(service)
        self.supervisor.wait(service)

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", STREAM, "stream", "--seconds", "1"]
        with (self.home / "stream.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | self.live.environment, cwd=PROJECT, stdout=log, stderr=log)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def said(self) -> str:
        return (self.home / "stream.log").read_text()

    def titles(self) -> dict[str, str]:
        """What the replica shows: product id -> title, of its whole small catalogue; nothing while it is not ready."""
        body = {"vector": [1.0] + [0.0] * 15, "k": 200}
        answer = httpx.post(f"{self.replica.url}/v1/search", json=body, timeout=30, trust_env=False)
        if answer.status_code == 503:
            return {}
        return {r["product_id"]: r["title"] for r in answer.raise_for_status().json()["results"]}

    def until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end, f"waited in vain: {what}; the stream said: {self.said()}"
            time.sleep(0.3)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.replica.stop()
        self.supervisor.stop("mlflow")


@pytest.fixture(scope="module")
def streamed(mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streamed]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        streamed = Streamed(tmp_path_factory.mktemp("streamed"), mlflow_tables, monkeypatch)
        try:
            yield streamed
        finally:
            streamed.stop()


def test_changes_are_served_and_the_process_ends_when_it_is_asked_to(streamed: Streamed) -> None:
    live = streamed.live
    live.send(live.upsert(3, 1), live.delete(4, 1), live.upsert(80, 1, seed=80))
    streamed.start()
    streamed.until(lambda: streamed.titles().get("p003") == "product 3 at 1", "the change is served")
    shown = streamed.titles()
    assert "p004" not in shown
    assert shown["p080"] == "product 80 at 1"
    streamed.until(lambda: live.count_waiting() == 0, "the changes are acknowledged")
    assert streamed.end(signal.SIGTERM) == 0
    assert "is live: 2 upserts and 1 deletes" in streamed.said()
    assert "stopped" in streamed.said()
    aliases = live.registry.aliases(INDEX_MODEL)
    assert aliases["live"] == aliases["candidate"] != live.base


def test_an_outage_of_mlflow_is_waited_for(streamed: Streamed) -> None:
    live = streamed.live
    streamed.supervisor.stop("mlflow")
    live.send(live.upsert(5, 1))
    streamed.start()
    streamed.until(lambda: "trying again in" in streamed.said(), "the outage is noticed")
    assert streamed.process is not None
    assert streamed.process.poll() is None
    streamed.start_mlflow()
    streamed.until(lambda: streamed.titles().get("p005") == "product 5 at 1", "the change is served after the outage")
    assert streamed.end(signal.SIGTERM) == 0


def test_a_killed_stream_goes_on_with_the_round_that_it_had_begun(streamed: Streamed) -> None:
    live = streamed.live
    live.send(live.upsert(6, 1), live.delete(7, 1))
    before = len(live.registry.versions(INDEX_MODEL))
    streamed.start()
    folder = streamed.home / "data" / "changes"
    streamed.until(lambda: any(folder.glob("stream.*/_plan.json")), "a round has begun")
    streamed.end(signal.SIGKILL)
    streamed.start()
    streamed.until(lambda: streamed.titles().get("p006") == "product 6 at 1", "the change is served")
    assert "p007" not in streamed.titles()
    assert streamed.end(signal.SIGTERM) == 0
    assert len(live.registry.versions(INDEX_MODEL)) == before + 1, "the round made one version"
    assert not list(folder.glob("stream.*/*")), "what a round needed is gone with it"


def test_rounds_that_fail_are_told_and_leave_the_live_version_alone(streamed: Streamed) -> None:
    live = streamed.live
    (live.home / "shop" / "images" / "bad.jpg").write_bytes(b"no picture")
    served = live.registry.aliases(INDEX_MODEL)["live"]
    live.send(*(live.upsert(n, 9, image="images/bad.jpg") for n in range(10, 16)))
    streamed.start()
    streamed.until(lambda: "Products without a usable picture" in streamed.said(), "the gate is told")
    assert streamed.end(signal.SIGTERM) == 0
    assert live.registry.aliases(INDEX_MODEL)["live"] == served
    assert live.count_waiting() == 6
    live.send(*(live.upsert(n, 10) for n in range(10, 16)))
    streamed.start()
    streamed.until(lambda: streamed.titles().get("p012") == "product 12 at 10", "good pictures go live")
    assert streamed.end(signal.SIGTERM) == 0
    streamed.until(lambda: live.count_waiting() == 0, "the changes are acknowledged")


def test_an_outage_of_any_length_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand failures in a row are a day, and twice that many no reason to end."""
    said: list[str] = []
    made = Stream(1.0, Event(), said.append)
    monkeypatch.setattr(made.stop, "wait", lambda pause: pause)
    made._handle_error(Round(failures=2000), ConnectionError("refused"))
    assert said == ["ConnectionError: refused; trying again in 60 s"]
