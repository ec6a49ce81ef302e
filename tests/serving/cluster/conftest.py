"""Shard processes' applications behind real ports of this process, and a gateway in front of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from tests.running import Served, until
from tests.serving.replica.storefront import Storefront, make_storefront

TOKEN = "a token of the tests"


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Storefront:
    """Two versions of 48 products in two shards, each version with its own encoder. Shared: copy it before changing it."""
    return make_storefront(tmp_path_factory.mktemp("storefront"))


@pytest.fixture
def store(front: Storefront, tmp_path: Path) -> Storefront:
    """A copy that a test may change."""
    return front.copy(tmp_path / "release")


def shard_app(store: Storefront, *shards: int) -> FastAPI:
    names = tuple(map(str, shards))
    return create_app(ServingSettings(role="shard", shards=names, release=str(store.release), poll_s=0.05))


def gateway_app(store: Storefront, urls: list[str], **settings: object) -> FastAPI:
    pace = {"probe_s": 0.05, "poll_s": 0.05}
    chosen = {"shard_urls": tuple(urls), "admin_token": TOKEN, "workers": 8} | pace | settings
    return create_app(ServingSettings(role="gateway", release=str(store.release), **chosen))  # type: ignore[arg-type]


@contextmanager
def running(store: Storefront, *held: tuple[int, ...], **settings: object) -> Iterator[tuple[TestClient, list[Served]]]:
    """A gateway that is ready, over one shard process for each of `held`."""
    with ExitStack() as stack:
        served = [stack.enter_context(Served(shard_app(store, *shards))) for shards in held]
        client = stack.enter_context(TestClient(gateway_app(store, [s.url for s in served], **settings)))
        until(lambda: client.get("/readyz").status_code == 200)
        yield client, served
