"""A real MLflow tells a replica that an alias moved: it flips though it never polls."""

import time
from pathlib import Path

import httpx
import pytest

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.demo.services import WEBHOOK_CACHE_S
from tasks.registry import Registry
from tasks.registry.webhook import REPLICA, register_webhook
from tests.registered import Shop
from tests.running import Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]
SECRET = "a secret of the tests"
HOUR_S = 3600.0


def test_a_moved_alias_reaches_a_replica_that_never_polls(mlflow_uri: str, tmp_path: Path) -> None:
    registry = Registry(mlflow_uri, tmp_path / "registry")
    shop = Shop(tmp_path, registry)
    first, second = shop.version(), shop.version(seed=1)
    shop.point(blue=first, green=second, live=first)
    settings = ServingSettings(mlflow_uri=mlflow_uri, cache=tmp_path / "cache", poll_s=HOUR_S, webhook_secret=SECRET)
    with Served(create_app(settings)) as served, httpx.Client(base_url=served.url, timeout=60, trust_env=False) as client:

        def until(live: str) -> None:
            limit = time.monotonic() + 60
            while ((state := client.get("/v1/version").json())["live"] or {}).get("version") != live:
                assert time.monotonic() < limit, state
                time.sleep(0.1)

        until(first)
        assert register_webhook(registry, served.url, SECRET, REPLICA)
        assert not register_webhook(registry, served.url, SECRET, REPLICA)
        limit = time.monotonic() + 60
        while (state := client.get("/v1/version").json())["slots"]["green"]["state"] != "ready":
            assert time.monotonic() < limit, state
            time.sleep(0.1)
        time.sleep(WEBHOOK_CACHE_S + 1)  # MLflow still has the list of webhooks that it read when `live` was first pointed
        shop.point(live=second)
        until(second)
