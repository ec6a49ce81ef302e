"""The search page shows a product without a picture, which words found, as an empty place: it asks for no picture of it."""

from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest

from serving.app import create_app
from serving.settings import ServingSettings
from tests.running import Served
from tests.serving.test_titles import titled_release

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]


def test_a_product_without_a_picture_has_an_empty_place(browser: "Browser", tmp_path: Path) -> None:
    app = create_app(ServingSettings(release=str(titled_release(tmp_path) / "release"), poll_s=0.05))
    app.state.replica.slots.refresh()
    errors, asked = list[str](), list[str]()
    with Served(app) as served:
        page = browser.new_page(bypass_csp=True)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{served.url}/?q=red+mug")
        page.wait_for_selector("#results li button")
        first, *others = page.locator("#results li").all()
        assert first.locator(".title").inner_text() == "red mug"
        assert "none" in (first.locator(".picture").get_attribute("class") or "")
        assert first.locator("img").get_attribute("src") is None
        assert sum("none" in (card.locator(".picture").get_attribute("class") or "") for card in others) == 1, "the blue lamp"
        first.locator("button").first.click()
        page.wait_for_function("document.querySelectorAll('#results li').length === 11")
        page.close()
    assert not errors
    assert not [url for url in asked if "/v1/images/p002" in url]
