"""Real servers that several test modules share; each is started once, on a free loopback port, and stopped at the end."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.demo.services import Supervisor, mlflow_service
from tasks.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mlflow_server(home: Path) -> Iterator[str]:
    """A real MLflow server over SQLite below `home`; gives its address."""
    settings = replace(Settings(), home=home, mlflow_uri=f"http://127.0.0.1:{free_port()}")
    supervisor, service = Supervisor(home), mlflow_service(settings)
    supervisor.start(service)
    try:
        supervisor.wait(service)
        yield settings.mlflow_uri
    finally:
        supervisor.stop(service.name)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The MLflow server that most tests share."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri
