"""The search page in a real browser, over a real server."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest

from tests.running import Served, until
from tests.serving.replica.conftest import TOKEN, open_app
from tests.serving.replica.storefront import Storefront, make_storefront

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]


@pytest.fixture(scope="module")
def url(front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica on a free port, with a candidate in the other slot."""
    store = front.copy(tmp_path_factory.mktemp("page") / "release")
    store.point(green="2")
    with Served(open_app(store, notice="sample data, drawn by code")) as served:
        yield served.url


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Storefront]]:
    """A replica whose ranker compares colours, and its release."""
    store = make_storefront(tmp_path_factory.mktemp("coloured"), versions=(0,), palettes=True)
    with Served(open_app(store)) as served:
        yield served.url, store


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica whose encoder understands a few words."""
    store = make_storefront(tmp_path_factory.mktemp("talking"), n=24, versions=(0,), words=True)
    with Served(open_app(store)) as served:
        yield served.url


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Storefront]]:
    """A replica whose candidate holds six products that are not live, and its release."""
    store = make_storefront(tmp_path_factory.mktemp("growing"), n=24, later=6)
    store.point(green="2")
    with Served(open_app(store)) as served:
        yield served.url, store


@pytest.fixture(scope="module")
def keyed(front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica that asks for an API key, which is `sesame`."""
    file = tmp_path_factory.mktemp("keyed") / "keys.json"
    file.write_text(json.dumps([{"name": "tests", "sha256": sha256(b"sesame").hexdigest()}]))
    with Served(open_app(front, api_keys=str(file))) as served:
        yield served.url


@pytest.fixture
def page(browser: "Browser", url: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1200, "height": 860}, bypass_csp=True)  # Playwright waits by eval
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(url)
    yield page
    page.close()
    assert errors == []


def choose(page: "Page", front: Storefront, place: int = 13) -> None:
    page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": front.photos[front.ids[place]]})
    page.wait_for_selector("#results li button")


def test_a_chosen_photo_shows_products_with_picture_price_and_reason(page: "Page", front: Storefront, tmp_path: Path) -> None:
    choose(page, front)
    cards = page.locator("#results li")
    assert cards.count() == 20
    first = cards.first
    assert "EUR" in first.locator(".price").inner_text()
    assert "% match" in first.locator(".why").inner_text() or "stock" in first.locator(".why").inner_text()
    page.wait_for_function("[...document.querySelectorAll('#results img')].slice(0, 5).every(i => i.naturalWidth > 0)")
    assert "index version 1" in page.locator("#version").inner_text()
    assert page.locator("#notice").inner_text() == "sample data, drawn by code"
    assert "encode" in page.locator("#timings").inner_text()
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_products_own_picture_finds_it_first_and_the_numbers_follow_the_order(browser: "Browser", coloured: tuple) -> None:
    url, front = coloured
    page = browser.new_page(bypass_csp=True)
    page.goto(url)
    for place in (0, 13, 30):
        picture = (front.catalog / "images" / f"{place}.jpg").read_bytes()
        with page.expect_response("**/v1/search") as answered:
            page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": picture})
        first = answered.value.json()["results"][0]
        page.wait_for_function("t => document.querySelector('#results .title')?.textContent === t", arg=first["title"])
        assert first["product_id"] == front.ids[place]
        shown = [int(why.split("\u00a0%")[0].split(" · ")[-1]) for why in page.locator("#results .why").all_inner_texts()]
        assert shown[0] >= 99
        assert shown == sorted(shown, reverse=True)
        assert "the same picture" in page.locator("#results .why").first.inner_text()
    page.close()


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
        page.wait_for_selector("#results li button")


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
    page = browser.new_page(
        viewport={"width": 390, "height": 800}, color_scheme="dark", is_mobile=True, has_touch=True, device_scale_factor=2
    )
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(url)
    choose(page, front)
    assert complaints == []  # its own policy on what it may load is kept
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(c) for c in ground[4:-1].split(",")) < 150
    page.close()


def test_a_photo_is_taken_with_the_camera(page: "Page") -> None:
    page.click("#camera")
    page.wait_for_function("document.querySelector('#video').videoWidth > 0")
    page.click("#shoot")
    page.wait_for_selector("#results li button")
    assert page.locator("#viewfinder").is_hidden()
    assert page.locator("#preview").is_visible()
    page.wait_for_function("!document.querySelector('#video').srcObject?.active")


def test_what_only_the_candidate_has_is_shown_and_followed(browser: "Browser", growing: tuple[str, Storefront]) -> None:
    """Its pictures too, which come with the admin token; what they were kept in is let go."""
    url, store = growing
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if "Content Security Policy" in m.text else None)
    page.add_init_script(
        """window.held = 0;
        const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
        URL.createObjectURL = (blob) => { held++; return make.call(URL, blob); };
        URL.revokeObjectURL = (url) => { if (url.startsWith("blob:")) held--; revoke.call(URL, url); };"""
    )
    page.goto(url)
    page.click("#compare summary")
    page.fill("#token", TOKEN)
    page.check("#both:enabled")
    choose(page, store, 20)
    until(lambda: page.evaluate("[...document.querySelectorAll('#candidate img')].every(i => i.naturalWidth > 0) && !held"))
    titles = page.locator("#candidate .title").all_inner_texts()
    place = next(n for n, title in enumerate(titles) if int(title.split()[-1]) >= 18)
    page.locator("#candidate .card").nth(place).click()
    page.wait_for_selector("#live-title + .message.bad")
    assert "is not in this index version" in page.locator("#live-title + .message").inner_text()
    assert page.locator("#results li").count() == 0
    assert page.locator("#candidate li").count() == 20
    assert page.locator("#message").inner_text().startswith("Live: no answer · slot green: 20 products")
    until(lambda: page.evaluate("document.querySelector('#preview').naturalWidth > 0 && !held"))
    assert complaints == []
    page.close()


def test_a_replica_that_asks_for_a_key_is_given_one_on_the_page(browser: "Browser", keyed: str, front: Storefront) -> None:
    page = browser.new_page()
    page.goto(keyed)
    assert page.locator("#admit").is_hidden()
    page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": front.photos[front.ids[1]]})
    page.wait_for_selector("#admit:not([hidden])")
    assert page.locator("#message").inner_text() == "This replica asks for an API key."
    for key in ("wrong", "sesame"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#message:text('does not know')" if key == "wrong" else "#results li .card")
    assert page.locator("#admit").is_hidden()
    page.locator("#results .card").nth(2).click()
    page.wait_for_url("**/?like=*")
    assert "sesame" not in page.url
    page.reload()
    page.wait_for_selector("#results li .card")
    page.close()


def test_back_leads_to_the_photo_before(page: "Page", front: Storefront) -> None:
    choose(page, front)
    before = page.locator("#results .title").all_inner_texts()
    choose(page, front, 6)
    page.wait_for_function("t => document.querySelector('#results .title').textContent !== t", arg=before[0])
    page.locator("#results button.card").nth(3).click()
    page.wait_for_url("**/?like=*")
    page.go_back()
    page.go_back()
    page.wait_for_function("t => document.querySelector('#results .title').textContent === t", arg=before[0])
    assert page.locator("#results .title").all_inner_texts() == before
    page.wait_for_function("document.querySelector('#preview').naturalWidth > 0")
    page.go_back()
    page.wait_for_selector("#hint", state="visible")
    assert page.locator("#results li").count() == 0


def test_a_file_is_chosen_by_keyboard(page: "Page", front: Storefront) -> None:
    # Playwright may miss a chooser that a key opens at once: what the key does to the file field is counted instead.
    page.evaluate(
        "() => { window.pressed = 0; document.querySelector('#file').onclick = e => { window.pressed++; e.preventDefault(); }; }"
    )
    for times, key in enumerate(("Enter", "Space"), 1):
        page.get_by_role("button", name="choose a file").focus()
        page.keyboard.press(key)
        assert page.evaluate("window.pressed") == times
    choose(page, front)
    assert page.get_by_role("button", name="What you asked with: choose another photo").is_visible()


def test_the_keyboards_place_is_among_the_results(page: "Page", front: Storefront) -> None:
    """The link to the results keeps what was asked, and a product that is followed leads to the first that looks like it."""
    choose(page, front)
    before = page.locator("#results .title").all_inner_texts()
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    assert page.locator("#results .title").all_inner_texts() == before
    page.locator("#results button.card").nth(2).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/?like=*")
    page.wait_for_function("document.activeElement === document.querySelector('#results .card')")


def test_back_leads_to_the_product_before(page: "Page", front: Storefront) -> None:
    choose(page, front)
    for place in (3, 5):
        title = page.locator("#results .title").nth(place).inner_text()
        page.locator("#results button.card").nth(place).click()
        page.wait_for_function(
            "t => ![...document.querySelectorAll('#results .title')].some(e => e.textContent === t)", arg=title
        )
    second = page.url
    page.go_back()
    page.wait_for_function("u => location.href !== u", arg=second)
    page.wait_for_selector("#results li button")
    assert "?like=" in page.url
    assert page.url != second


def test_arrows_walk_through_the_results(page: "Page", front: Storefront) -> None:
    choose(page, front)
    page.locator("#results button.card").first.focus()
    place = "[...document.querySelectorAll('#results .card')].indexOf(document.activeElement)"
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        walked.append(page.evaluate(place))
    assert walked[:3] == [1, 2, 1]
    assert walked[3] > 2
    assert walked[4] == 1


def test_each_result_says_why_it_is_where_it_is(page: "Page", front: Storefront) -> None:
    choose(page, front)
    item = page.locator("#results li").first
    item.locator(".terms summary").click()
    names, values = item.locator(".terms dt").all_inner_texts(), item.locator(".terms dd").all_inner_texts()
    assert (names[0], names[-1]) == ("similarity", "= score")
    assert sum(map(float, values[:-1])) == pytest.approx(float(values[-1]), abs=0.004), "the terms are the score"


def test_filters_are_counted_and_cleared(page: "Page", front: Storefront) -> None:
    choose(page, front)
    page.fill("[name=min_price]", "20")
    page.press("[name=min_price]", "Tab")
    page.check("[name=in_stock]")
    page.wait_for_function("[...document.querySelectorAll('#results .price')].every(e => parseFloat(e.textContent) >= 20)")
    page.wait_for_function("!document.querySelector('#results .out')")
    assert page.locator("#active").inner_text() == "2"
    page.click("#reset")
    page.wait_for_function("document.querySelectorAll('#results li').length === 20")
    page.wait_for_selector("#active", state="hidden")


def test_words_search_and_mix_with_a_photo(browser: "Browser", talking: str, front: Storefront) -> None:
    page = browser.new_page(bypass_csp=True)
    page.goto(talking)
    page.wait_for_function("!document.querySelector('#text').disabled")
    page.keyboard.press("/")
    page.keyboard.type("red mug")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results li button")
    assert "?q=red+mug" in page.url
    by_words = page.locator("#results .title").all_inner_texts()
    choose(page, front, 2)
    page.wait_for_function("document.querySelector('#mix').checkVisibility()")
    page.wait_for_function("t => JSON.stringify([...document.querySelectorAll('#results .title')].map(e => e.textContent)) !== t",
                           arg=json.dumps(by_words, separators=(",", ":")))  # fmt: skip
    mixed = page.locator("#results .title").all_inner_texts()
    page.locator("#weight").fill("1")
    page.wait_for_function("t => document.querySelector('#results .title').textContent === t", arg=by_words[0])
    page.click("#clear")
    page.wait_for_function("document.querySelector('#mix').hidden")
    assert mixed != by_words
    page.close()


def test_where_there_is_no_text_tower_the_words_are_closed(page: "Page") -> None:
    page.wait_for_function("document.querySelector('#text').disabled")
    assert "no text tower" in page.get_attribute("#text", "placeholder")


def test_the_candidates_differences_are_marked(page: "Page", front: Storefront) -> None:
    page.click("#compare summary")
    page.fill("#token", TOKEN)
    page.check("#both")
    page.fill("[name=max_price]", "30")
    choose(page, front)
    page.wait_for_selector("#candidate li .badge:visible")
    badges = [b for b in page.locator("#candidate .badge").all_inner_texts() if b]
    assert all(b == "new" or b[0] in "↑↓" for b in badges)
    live = page.locator("#results .title").all_inner_texts()
    same = sum(t in live for t in page.locator("#candidate .title").all_inner_texts())
    assert f"{same} of {len(live)} the same" in page.locator("#candidate-title").inner_text()


def test_the_other_slot_stays_closed_without_the_token(page: "Page", front: Storefront) -> None:
    page.click("#compare summary")
    page.check("#both")
    page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": front.photos[front.ids[1]]})
    page.wait_for_selector("#other .message.bad")
    assert "admin token" in page.locator("#other .message").inner_text()
    assert page.locator("#results li .card").count() == 20
