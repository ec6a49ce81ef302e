"""The home that commit 8710f00 left, unpacked once, with its MLflow server; and copies of it for tests that change it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.entry_points import read_queries, unpack
from tests.servers import mlflow_server

ARCHIVE = Path(__file__).with_name("fixture-8710f00.tar.xz")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(ARCHIVE, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, Any]:
    return read_queries(home)


@pytest.fixture(scope="module")
def mlflow_uri(home: Path) -> Iterator[str]:
    with mlflow_server(home) as uri:
        yield uri
