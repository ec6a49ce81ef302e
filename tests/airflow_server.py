"""A real Airflow API server with the project's DAGs and plugins, and one user of each role; no scheduler, so nothing runs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tasks.demo.services import airflow_service
from tasks.demo.supervisor import Service, Supervisor
from tasks.settings import PROJECT, Settings

ROLES = {"admin": "admin", "operator": "op", "someone": "user", "viewer": "viewer", "nobody": ""}
"""The users of the tests and their roles in Airflow's simple auth manager; nobody may log in and has no permission."""


@dataclass(frozen=True)
class Server:
    """A running API server."""

    url: str
    settings: Settings
    environment: dict[str, str]

    def token(self, user: str) -> str:
        answer = httpx.post(f"{self.url}/auth/token", json={"username": user, "password": user}, timeout=60, trust_env=False)
        return str(answer.raise_for_status().json()["access_token"])

    def client(self, user: str = "") -> httpx.Client:
        """A client that presents this user's token, or none at all."""
        headers = {"Authorization": f"Bearer {self.token(user)}"} if user else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


def airflow(environ: dict[str, str], *arguments: str, errors: Path | None = None) -> str:
    """What a Python module prints in a process with Airflow's environment, its errors to a file of that name. Fails where it does."""
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    done = subprocess.run(command, env=environ, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    if errors is not None:
        errors.write_text(done.stderr)
    return done.stdout


def make_airflow_tables(path: Path) -> None:
    """A SQLite file with Airflow's empty tables."""
    with tempfile.TemporaryDirectory() as home:
        database = {"AIRFLOW_HOME": home, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{path}"}
        airflow(os.environ | database | {"AIRFLOW__CORE__LOAD_EXAMPLES": "False"}, "airflow", "db", "migrate")


def environment(settings: Settings, tables: Path) -> dict[str, str]:
    """Airflow's, over a copy of `tables`, with a user of every role; passwords are the names."""
    (settings.home / "airflow").mkdir(parents=True, exist_ok=True)
    shutil.copy(tables, settings.home / "airflow" / "airflow.db")
    service = airflow_service(settings)
    users = ",".join(f"{name}:{role}" for name, role in ROLES.items())
    passwords = settings.home / "airflow" / "test-passwords.json"
    passwords.write_text("{" + ",".join(f'"{name}": "{name}"' for name in ROLES) + "}")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "MLFLOW_", "VITRINE_"))}
    return kept | service.environment | {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": users,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }  # fmt: skip


@contextmanager
def api_server(settings: Settings, tables: Path) -> Iterator[Server]:
    """The DAGs read once, the API server up; its database is a copy of `tables`."""
    environ = environment(settings, tables)
    airflow(environ, "airflow", "dags", "reserialize")
    service = Service(
        "airflow-api",
        (sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", settings.airflow_url.rsplit(":", 1)[1]),
        environ,
        f"{settings.airflow_url}/api/v2/version",
    )
    supervisor = Supervisor(settings.home)
    supervisor.start(service)
    try:
        supervisor.wait(service)
        yield Server(settings.airflow_url, settings, environ)
    finally:
        supervisor.stop(service.name)
