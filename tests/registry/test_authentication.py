"""MLflow with its own authentication (`mlflow[auth]`): the pipeline writes, replicas read, and nobody else does either."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException

from serving.versions.slots import Slots
from serving.versions.version_source import MlflowSource
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry
from tasks.settings import PROJECT
from tests.registered import Shop
from tests.running import answers
from tests.servers import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

PASSWORD = "a password of the tests"
START_S = 180.0
AS = Callable[[str], None]


@pytest.fixture(scope="module")
def address(mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that asks who is there; by default a user may read, as docker/ sets it up."""
    home = tmp_path_factory.mktemp("mlflow")
    shutil.copy(mlflow_tables, home / "mlflow.db")
    settings = (Path(PROJECT) / "docker" / "mlflow" / "auth.ini").read_text()
    assert "/var/lib/vitrine/mlflow/" in settings
    (home / "auth.ini").write_text(settings.replace("/var/lib/vitrine/mlflow/", f"{home}/"))
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the tests", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=home)
    try:
        end = time.monotonic() + START_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert time.monotonic() < end, (home / "log").read_text()[-2000:]
            assert server.poll() is None, (home / "log").read_text()[-2000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


@dataclass
class Served:
    """A shop whose version `version` is live, and what says as whom MLflow is asked."""

    shop: Shop
    version: str
    log_in: AS


@pytest.fixture(scope="module")
def served(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environment, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("shop")

    def log_in(user: str) -> None:
        environment.undo()
        for name, value in (("USERNAME", user), ("PASSWORD", PASSWORD)):
            environment.setenv(f"MLFLOW_TRACKING_{name}", value) if user else environment.delenv(f"MLFLOW_TRACKING_{name}", False)

    log_in("pipeline")
    made = httpx.post(
        f"{address}/api/2.0/mlflow/users/create", json={"username": "replica", "password": PASSWORD}, auth=("pipeline", PASSWORD),
        timeout=60, trust_env=False,
    )  # fmt: skip
    assert made.status_code == 200, made.text
    shop = Shop(home, Registry(address, home / "cache"))
    version = shop.version()
    shop.point(live=version, blue=version)
    yield Served(shop, version, log_in)
    environment.undo()


def test_a_replica_that_may_read_serves_the_version(served: Served, address: str, tmp_path: Path) -> None:
    served.log_in("replica")
    slots: Slots = Slots(MlflowSource(address, tmp_path / "replica"))
    slots.refresh()
    assert slots.live is not None, slots.describe()
    assert slots.live.version == served.version


def test_a_replica_may_write_neither_artifacts_nor_tags_nor_aliases(served: Served, tmp_path: Path) -> None:
    registry, version = served.shop.registry, served.version
    run = registry.version(INDEX_MODEL, version).run_id
    (tmp_path / "manifest.json").write_text("{}")
    served.log_in("replica")
    for write in (
        lambda: registry.client.log_artifact(run, str(tmp_path / "manifest.json"), INDEX_PATH),
        lambda: registry.tag_version(INDEX_MODEL, version, "manifest.sha256", "0" * 64),
        lambda: registry.set_alias(INDEX_MODEL, "green", version),
    ):
        with pytest.raises((MlflowException, OSError), match=r"403|[Pp]ermission"):
            write()


def test_who_does_not_say_who_it_is_learns_nothing(served: Served, address: str, tmp_path: Path) -> None:
    served.log_in("")
    slots: Slots = Slots(MlflowSource(address, tmp_path / "replica"))
    slots.refresh()
    assert slots.live is None
    assert "authenticated" in slots.error
