from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from tests.serving.replica.storefront import Storefront, make_storefront

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # Chromium's own test camera
TOKEN = "a token of the tests"


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Storefront:
    """Two versions of 48 products, each with its own encoder. Shared: copy it before changing it."""
    return make_storefront(tmp_path_factory.mktemp("storefront"))


@pytest.fixture
def store(front: Storefront, tmp_path: Path) -> Storefront:
    """A copy that a test may change."""
    return front.copy(tmp_path / "release")


def open_app(store: Storefront, **settings: object) -> FastAPI:
    """An app over the release, its aliases followed once; nothing runs in the background until it is started."""
    app = create_app(ServingSettings(release=str(store.release), admin_token=TOKEN, poll_s=0.05, **settings))  # type: ignore[arg-type]
    app.state.replica.slots.refresh()
    return app


@pytest.fixture(scope="session")
def asked(front: Storefront) -> Iterator[TestClient]:
    """A client of a replica that tests share: they ask, and change nothing."""
    with TestClient(open_app(front)) as client:
        yield client


@pytest.fixture
def admin() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        yield browser
        browser.close()
