"""Real servers that several test modules share; each is started once, on a free loopback port, and stopped at the end."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tasks.demo.services import Supervisor, mlflow_service
from tasks.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server over SQLite."""
    home = tmp_path_factory.mktemp("mlflow")
    settings = replace(Settings(), home=home, mlflow_uri=f"http://127.0.0.1:{free_port()}")
    supervisor, service = Supervisor(home), mlflow_service(settings)
    supervisor.start(service)
    try:
        supervisor.wait(service)
        yield settings.mlflow_uri
    finally:
        supervisor.stop(service.name)
