"""Which tests share a worker and in which order they start; and what all workers of a run share.

`make test` runs the tests in processes beside one another (pytest-xdist, `--dist loadgroup`). Tests of one group run one after
the other in one worker, so that a server or session fixture that they share is started once.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.airflow_server import make_airflow_tables
from tests.servers import make_mlflow_tables, mlflow_server

HERE = Path(__file__).parent
LONGEST = ("mlflow", "airflow", "compatibility", "embed")
"""The groups that take longest, the longest first, so that no worker is left with one while the others idle."""


def group(item: pytest.Item) -> str:
    """The group that a test's mark names; of those that use the shared MLflow "mlflow"; else the folder of its conftest, or its own."""
    mark = item.get_closest_marker("xdist_group")
    if mark is not None:
        return str(mark.args[0])
    if "mlflow_uri" in getattr(item, "fixturenames", ()):
        return "mlflow"
    folder = item.path.parent
    folders = [f for f in (folder, *folder.parents) if f.is_relative_to(HERE) and f != HERE]
    return str(next((f for f in folders if (f / "conftest.py").exists()), folder).relative_to(HERE))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks each test with its group. (xdist reads the marks before it calls this file's pytest_collection_modifyitems.)"""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(group(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the groups that take longest; the rest stays in order."""
    names = {item: group(item) for item in items}
    items.sort(key=lambda item: LONGEST.index(names[item]) if names[item] in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a file that all workers of this run share: whoever comes first makes it, the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, write: Callable[[Path], None]) -> Path:
        path = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not path.exists():
                write(shared / f"{name}.part")
                (shared / f"{name}.part").rename(path)
        return path

    return make


@pytest.fixture(scope="session")
def mlflow_tables(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A SQLite file with MLflow's empty tables, to copy: making them takes seconds."""
    return made_once("mlflow.db", make_mlflow_tables)


@pytest.fixture(scope="session")
def airflow_tables(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A SQLite file with Airflow's empty tables, to copy: making them takes a quarter of a minute."""
    return made_once("airflow.db", make_airflow_tables)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[str]:
    """The MLflow server that most tests share."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), mlflow_tables) as uri:
        yield uri
