"""One real stack for all tests of the board: MLflow with versions, two replicas, and Airflow's API server with our plugin."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tasks.registry import ENCODER_MODEL, Registry
from tasks.settings import Settings
from tests.airflow_server import Server, api_server
from tests.registered import TOKEN, Running, Shop, good_gates, replicas
from tests.servers import free_port

SECRET = "signs the messages of the tests"


@dataclass
class Stack:
    """`versions`: the numbers of four index versions: older, previous, one whose recall gate failed, live; and a candidate."""

    server: Server
    shop: Shop
    replicas: list[Running]
    versions: list[str]

    @property
    def registry(self) -> Registry:
        return self.shop.registry


@pytest.fixture(scope="session")
def stack(mlflow_uri: str, airflow_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("board")
    shop = Shop(home, Registry(mlflow_uri, home / "cache"))
    versions = [
        shop.version(good_gates(recall, p99)) for recall, p99 in ((0.92, 24), (0.93, 20), (0.87, 18), (0.934, 31), (0.94, 22))
    ]
    shop.registry.set_alias(ENCODER_MODEL, "champion", shop.encoder())
    _, previous, _, live, candidate = versions
    shop.point(blue=live, green=previous, live=live, previous=previous, candidate=candidate)
    with replicas(mlflow_uri, home, 2) as running:
        settings = replace(
            Settings(), home=home, mlflow_uri=mlflow_uri, airflow_url=f"http://127.0.0.1:{free_port()}", airflow_password="admin",
            serving_urls=tuple(r.url for r in running), admin_token=TOKEN, webhook_secret=SECRET,
        )  # fmt: skip
        with api_server(settings, airflow_tables) as server:
            yield Stack(server, shop, running, versions)
