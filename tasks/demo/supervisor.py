"""Starts, finds and stops the services of one machine; their pid files and logs lie below the home."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tasks.errors import VitrineError
from tasks.settings import PROJECT

START_LIMIT_S = 240
STOP_LIMIT_S = 20


@dataclass(frozen=True)
class Service:
    """One process: command, environment, and the health url that responds once it is up."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    health: str

    @property
    def digest(self) -> str:
        """Changes when the service must be restarted with another configuration."""
        return sha256(json.dumps([self.command, self.environment], sort_keys=True).encode()).hexdigest()


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


class Supervisor:
    """Starts, finds and stops services; pid files and logs lie below `home`."""

    def __init__(self, home: Path) -> None:
        self.pids, self.logs = home / "run", home / "logs"
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: Service) -> bool:
        """Starts the service unless it already runs with this configuration. Returns whether it started."""
        record = self._record(service.name)
        if record is not None:
            if record["digest"] == service.digest:
                return False
            self.stop(service.name)
        host, port = address_of(service.health)
        if in_use(host, port):
            raise VitrineError(
                f"port {port} on {host} is in use by another program, so {service.name} cannot start: "
                f"stop that program, or choose another port with {_setting_of(service.name)}"
            )
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{service.name}.log").open("ab") as log:
            process = subprocess.Popen(
                service.command, env=_clean_environment() | service.environment, cwd=PROJECT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pids.mkdir(parents=True, exist_ok=True)
        self.children[service.name] = process
        created = psutil.Process(process.pid).create_time()
        (self.pids / f"{service.name}.json").write_text(
            json.dumps({"pid": process.pid, "created": created, "digest": service.digest})
        )
        return True

    def wait(self, service: Service, tick: Callable[[], None] = lambda: None) -> None:
        """Waits until the service responds. Raises VitrineError with the end of its log when it dies or times out."""
        limit = time.monotonic() + START_LIMIT_S
        while time.monotonic() < limit:
            if self._record(service.name) is None:
                self._reap(service.name)
                raise VitrineError(f"{service.name} stopped while starting; the end of its log:\n{self.log_tail(service.name)}")
            if _answers(service.health):
                return
            tick()
            time.sleep(0.5)
        raise VitrineError(f"{service.name} did not answer at {service.health} within {START_LIMIT_S} s; see {self.logs}")

    def running(self) -> list[str]:
        """Names of live services started from this home."""
        return [p.stem for p in sorted(self.pids.glob("*.json")) if self._record(p.stem) is not None]

    def stop(self, name: str) -> bool:
        """Stops a service and all its child processes. Returns whether it ran."""
        record = self._record(name)
        if record is None:
            return False
        root = psutil.Process(record["pid"])
        family = [root, *root.children(recursive=True), *_same_session(record["pid"])]
        family = list({p.pid: p for p in family}.values())
        _signal(family, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=STOP_LIMIT_S)
        _signal(alive, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        self._reap(name)
        (self.pids / f"{name}.json").unlink(missing_ok=True)
        return True

    def _reap(self, name: str) -> None:
        """Reaps an exited child process."""
        child = self.children.pop(name, None)
        if child is not None:
            child.wait(STOP_LIMIT_S)

    def log_tail(self, name: str, lines: int = 15) -> str:
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else "(no log)"

    def _record(self, name: str) -> dict | None:
        """Content of the pid file while that same process lives; a stale file is removed."""
        path = self.pids / f"{name}.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        try:
            process = psutil.Process(record["pid"])
            alive = abs(process.create_time() - record["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            path.unlink(missing_ok=True)
            return None
        return record


def _same_session(session: int) -> list[psutil.Process]:
    """Processes of a session, including orphans of the service."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return found


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _clean_environment() -> dict[str, str]:
    """This process's environment without other settings of Airflow, MLflow or Vitrine."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "MLFLOW_", "VITRINE_"))}


def in_use(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _setting_of(name: str) -> str:
    return {
        "mlflow": "VITRINE_MLFLOW_URI", "airflow": "VITRINE_AIRFLOW_URL", "serving": "VITRINE_SERVING_URLS",
        "milvus": "VITRINE_ENGINE_ADDRESS",
    }[name]  # fmt: skip
