"""A small shop over a real registry that the command line is pointed at, and the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks.cli import app
from tasks.registry import Registry
from tests.registered import Shop


@pytest.fixture
def shop(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    for name, value in {"HOME": str(tmp_path), "MLFLOW_URI": mlflow_uri, "SERVING_URLS": ""}.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)
    monkeypatch.setenv("COLUMNS", "500")  # paths are longer under xdist
    return Shop(tmp_path, Registry(mlflow_uri, tmp_path / "cache"))


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    done = CliRunner().invoke(app, [*arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output
