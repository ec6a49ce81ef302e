"""The search page in a real browser, over a real server."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest
import uvicorn

from tests.serving.whole.conftest import TOKEN, open_app
from tests.serving.whole.storefront import Storefront

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def url(front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica on a free port, with a candidate in the other slot."""
    store = front.copy(tmp_path_factory.mktemp("page") / "release")
    store.point(green="2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = open_app(store, notice="sample data, drawn by code")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", url: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1200, "height": 860})
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(url)
    yield page
    page.close()
    assert errors == []


def choose(page: "Page", front: Storefront, place: int = 13) -> None:
    page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": front.photos[front.ids[place]]})
    page.wait_for_selector("#results li")


def test_a_chosen_photo_shows_products_with_picture_price_and_reason(page: "Page", front: Storefront, tmp_path: Path) -> None:
    choose(page, front)
    cards = page.locator("#results li")
    assert cards.count() == 20
    first = cards.first
    assert "EUR" in first.locator(".price").inner_text()
    assert "alike" in first.locator(".why").inner_text() or "stock" in first.locator(".why").inner_text()
    page.wait_for_function("[...document.querySelectorAll('#results img')].slice(0, 5).every(i => i.naturalWidth > 0)")
    assert "index version 1" in page.locator("#version").inner_text()
    assert page.locator("#notice").inner_text() == "sample data, drawn by code"
    assert "encode" in page.locator("#timings").inner_text()
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_product_leads_to_similar_ones_by_keyboard(page: "Page", front: Storefront) -> None:
    choose(page, front)
    before = page.locator("#results .title").all_inner_texts()
    page.locator("#results button.card").nth(2).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "t => ![...document.querySelectorAll('#results .title')].some(e => e.textContent === t)", arg=before[2]
    )
    assert page.locator("#results li").count() == 20


def test_a_pasted_and_a_dropped_photo_search_too(page: "Page", front: Storefront) -> None:
    bytes_ = list(front.photos[front.ids[4]])
    for kind in ("paste", "drop"):
        page.evaluate(
            """([bytes, kind]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "p.jpg", {type: "image/jpeg"}));
                const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
                                               : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
                document.querySelector("#results").replaceChildren();
                document.body.dispatchEvent(event);
            }""",
            [bytes_, kind],
        )
        page.wait_for_selector("#results li")


def test_filters_narrow_the_answer(page: "Page", front: Storefront) -> None:
    choose(page, front)
    page.fill("[name=brand]", "Vela")
    page.press("[name=brand]", "Tab")
    page.wait_for_function("[...document.querySelectorAll('#results .price')].every(e => e.textContent.includes('Vela'))")
    page.fill("[name=max_price]", "0")
    page.press("[name=max_price]", "Tab")
    page.wait_for_function("document.querySelector('#message').textContent.includes('No product')")


def test_what_is_no_picture_gets_the_servers_sentence(page: "Page") -> None:
    page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": b"not a picture"})
    page.wait_for_selector("#message.bad")
    assert "not an image" in page.locator("#message").inner_text()


def test_two_versions_side_by_side_for_who_judges_a_candidate(page: "Page", front: Storefront) -> None:
    page.click("#compare summary")
    page.fill("#token", TOKEN)
    page.check("#both")
    choose(page, front)
    page.wait_for_selector("#candidate li")
    assert "version 2" in page.locator("#candidate-title").inner_text()
    assert "version 1" in page.locator("#live-title").inner_text()
    assert page.locator("#candidate li").count() == 20


def test_it_fits_a_phone(browser: "Browser", url: str, front: Storefront) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto(url)
    choose(page, front)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(c) for c in ground[4:-1].split(",")) < 150
    page.close()
