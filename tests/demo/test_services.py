"""Services: started once, found again, stopped with their children, and a port that is taken is one sentence."""

import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.demo.services import secret
from tasks.demo.supervisor import Service, Supervisor
from tasks.errors import VitrineError
from tests.servers import free_port

PARENT = """
import subprocess, sys, http.server
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def port() -> int:
    return free_port()


def service(port: int, flavour: str = "") -> Service:
    return Service("mlflow", (sys.executable, "-c", PARENT, str(port)), {"FLAVOUR": flavour}, f"http://127.0.0.1:{port}/")


def test_a_service_is_started_once_found_again_and_stopped_with_its_children(tmp_path: Path, port: int) -> None:
    supervisor = Supervisor(tmp_path)
    assert supervisor.start(service(port))
    supervisor.wait(service(port))
    assert not Supervisor(tmp_path).start(service(port))
    assert Supervisor(tmp_path).running() == ["mlflow"]
    pid = supervisor._record("mlflow")["pid"]  # type: ignore[index]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(family) == 2
    assert supervisor.stop("mlflow")
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert not supervisor.stop("mlflow")


def test_a_service_whose_settings_changed_is_started_anew(tmp_path: Path, port: int) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.start(service(port))
    supervisor.wait(service(port))
    assert supervisor.start(service(port, "other"))
    supervisor.wait(service(port, "other"))
    supervisor.stop("mlflow")


def test_a_port_in_use_is_one_sentence(tmp_path: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(VitrineError, match=rf"port {port} on 127\.0\.0\.1 is in use .* VITRINE_MLFLOW_URI"):
            Supervisor(tmp_path).start(service(port))


def test_a_service_that_dies_shows_the_end_of_its_log(tmp_path: Path, port: int) -> None:
    supervisor = Supervisor(tmp_path)
    dying = Service("mlflow", (sys.executable, "-c", "raise SystemExit('no database')"), {}, f"http://127.0.0.1:{port}/")
    supervisor.start(dying)
    with pytest.raises(VitrineError, match="no database"):
        supervisor.wait(dying)


def test_a_pid_that_belongs_to_another_process_is_not_ours(tmp_path: Path, port: int) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.pids.mkdir(parents=True)
    me = psutil.Process()
    (supervisor.pids / "mlflow.json").write_text(f'{{"pid": {me.pid}, "created": {time.time() + 1000}, "digest": ""}}')
    assert supervisor.running() == []
    assert not supervisor.stop("mlflow")


def test_a_secret_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first = secret(tmp_path / "a" / "token")
    assert secret(tmp_path / "a" / "token") == first
    assert len(first) >= 24
    assert (tmp_path / "a" / "token").stat().st_mode & 0o077 == 0
