"""What all tests share: how they are spread over workers, and what is made or started once."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from xdist.remote import Producer

from tests.airflow_server import make_airflow_tables
from tests.brief import measure_briefly
from tests.patience import wait_patiently
from tests.scheduling import GroupScheduling, place
from tests.servers import free_port as free_port
from tests.servers import make_mlflow_tables, mlflow_server


def pytest_configure() -> None:
    """Forgets how wide a terminal is: GNU readline, which pytest loads, puts 80 columns into the environment of xdist's workers.

    Their main module has no file, from which pyspark.sql.connect concludes that it runs doctests, and ends the process.
    """
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__"):
        main.__file__ = __file__


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the groups that take longest; the rest stays in order."""
    items.sort(key=lambda item: place(item.path))


@pytest.fixture(scope="session", autouse=True)
def brief() -> Iterator[None]:
    """Measurements of speed are short."""
    with pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """No search fails because the machine stood still for some seconds."""
    with pytest.MonkeyPatch.context() as patch:
        wait_patiently(patch)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a file that all workers of this run share: whoever comes first makes it, the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, write: Callable[[Path], None]) -> Path:
        path = shared / name
        with FileLock(shared / f"{name}.lock"):
            part = shared / f"{name}.part"
            if not path.exists():
                part.unlink(missing_ok=True)
                write(part)
                part.rename(path)
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
