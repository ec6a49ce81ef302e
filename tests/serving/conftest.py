"""One small release for the serving tests of a module, and a replica of it in this process."""

import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from serving.telemetry.logs import JsonLines
from tests.releases import add_version, make_release
from tests.running import until

TOKEN = "the admin's token"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with versions 1 and 2 (another encoder); copied by whoever changes it."""
    home = tmp_path_factory.mktemp("release")
    snapshot = make_release(home)
    add_version(home, snapshot, "2", seed=1)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "release", tmp_path / "release")
    return tmp_path


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    settings = ServingSettings(
        release=str(home / "release"), admin_token=TOKEN, poll_s=0.05, notice="sample data", max_image_bytes=2**20
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        until(lambda: client.get("/readyz").status_code == 200, "the replica is ready")
        yield client


@pytest.fixture
def lines() -> Iterator[list[dict]]:
    """What the replica logs, parsed line by line when asked."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("serving")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    class Lines(list):
        def __iter__(self) -> Iterator[dict]:
            return (json.loads(line) for line in stream.getvalue().splitlines())

    yield Lines()
    logger.removeHandler(handler)
    logger.setLevel(before)
