"""Supervises the services of one machine: started once, found again by pid file, stopped with their children."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from serving.contract.child_environment import CLOUD, child_environment
from tasks.catalog.sample.catalog import NOTICE
from tasks.errors import SettingsError, VitrineError
from tasks.settings import PROJECT, Settings, as_variables, write_private

START_LIMIT_S = 240
STOP_LIMIT_S = 20
WEBHOOK_CACHE_S = 5
SERVING_SECRETS = (
    "VITRINE_ADMIN_TOKEN", "VITRINE_WEBHOOK_SECRET", "VITRINE_MLFLOW_URI", "VITRINE_API_KEYS", "VITRINE_CACHE_URL",
    "VITRINE_PROFILES_URL", *CLOUD,
)  # fmt: skip
"""Variables that a replica needs although they are, or may hold, secrets; the catalogue's password is none of them."""
"""How long MLflow remembers its list of webhooks (its default is 60)."""


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


def secret(path: Path) -> str:
    """A random secret of this home, generated once, mode 0600."""
    if not path.is_file():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def fernet_key(text: str) -> str:
    """A key for MLflow (32 bytes, base64) derived from the secret: another key could not decrypt what is stored."""
    return urlsafe_b64encode(sha256(text.encode()).digest()).decode()


def all_services(settings: Settings) -> list[Service]:
    """MLflow, Airflow and one serving replica, configured by the settings. Raises SettingsError for an unusable home."""
    if "?" in str(settings.home):
        raise SettingsError(
            f"VITRINE_HOME={str(settings.home)!r} holds a question mark, with which MLflow and Airflow cannot open their databases; "
            "choose a folder without one"
        )
    return [mlflow_service(settings), serving_service(settings), airflow_service(settings)]


def process_environment(settings: Settings) -> dict[str, str]:
    """All settings as environment variables, so that all processes of the demo agree."""
    return as_variables(settings) | {
        "VITRINE_STORE": settings.store_uri,
        "VITRINE_CATALOG": settings.catalog_uri,
        "VITRINE_PROGRESS_DIR": str(settings.home / "progress"),
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONWARNINGS": "ignore",
    }


def mlflow_service(settings: Settings) -> Service:
    host, port = _address(settings.mlflow_uri)
    folder = settings.home / "mlflow"
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--registry-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts",
    )  # fmt: skip
    environment = child_environment(process_environment(settings)) | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Its message about a moved champion goes to Airflow on this machine, and its secret is kept encrypted.
        "MLFLOW_WEBHOOK_CACHE_TTL": str(WEBHOOK_CACHE_S),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": fernet_key(secret(folder / "webhooks.secret")),
    }
    return Service("mlflow", command, environment, f"{settings.mlflow_uri}/health")


def airflow_service(settings: Settings) -> Service:
    host, port = _address(settings.airflow_url)
    folder = settings.home / "airflow"
    options = {
        "CORE__DAGS_FOLDER": PROJECT / "dags",
        "CORE__PLUGINS_FOLDER": PROJECT / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{settings.airflow_user}:admin,operator:op,viewer:viewer",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": folder / "passwords.json",
        "CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
        "API__HOST": host,
        "API__PORT": port,
        "API__BASE_URL": settings.airflow_url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": secret(folder / "api.secret"),
        "API_AUTH__JWT_SECRET": secret(folder / "jwt.secret"),
        "DAG_PROCESSOR__REFRESH_INTERVAL": 10,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 30,
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 1,
        "LOGGING__LOGGING_LEVEL": "INFO",
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    environment = process_environment(settings) | {"AIRFLOW_HOME": str(folder)}
    environment |= {f"AIRFLOW__{name}": str(value) for name, value in options.items()}
    _write_passwords(folder / "passwords.json", settings)
    command = (sys.executable, "-m", "airflow", "standalone")
    return Service("airflow", command, environment, f"{settings.airflow_url}/api/v2/monitor/health")


def serving_service(settings: Settings) -> Service:
    host, port = _address(settings.serving_urls[0])
    environment = child_environment(process_environment(settings), SERVING_SECRETS) | {
        "VITRINE_HOST": host,
        "VITRINE_PORT": str(port),
        "VITRINE_CACHE": str(settings.home / "serving" / "cache"),
        "VITRINE_NOTICE": "" if settings.catalog else NOTICE,
    }
    command = (sys.executable, "-m", "serving.main")
    return Service("serving", command, environment, f"{settings.serving_urls[0]}/healthz")


def _write_passwords(path: Path, settings: Settings) -> None:
    """The password file of Airflow's simple auth manager: our admin's, and generated ones for the others."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    wanted = known | {settings.airflow_user: settings.airflow_password}
    for user in ("operator", "viewer"):
        wanted.setdefault(user, secrets.token_urlsafe(12))
    if wanted != known:
        write_private(path, json.dumps(wanted))


def _address(url: str) -> tuple[str, int]:
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
        host, port = _address(service.health)
        if _in_use(host, port):
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


def _in_use(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _setting_of(name: str) -> str:
    return {"mlflow": "VITRINE_MLFLOW_URI", "airflow": "VITRINE_AIRFLOW_URL", "serving": "VITRINE_SERVING_URLS"}[name]
