"""The box on the search page in a real browser: by mouse, by touch and by keyboard, and it searches when it is let go."""

import io
import json
from collections.abc import Iterator
from shutil import which
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest
from PIL import Image

from tests.running import Served
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]
WIDTH, HEIGHT = 1200, 900


@pytest.fixture(scope="module")
def url(front: Storefront) -> Iterator[str]:
    with Served(open_app(front)) as served:
        yield served.url


def photo(turned: bool = False) -> bytes:
    """A photo of 1200 x 900 pixels as it is seen; `turned`: stored on its side."""
    scene, exif = Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB"), Image.Exif()
    if turned:
        scene, exif[0x112] = scene.transpose(Image.Transpose.ROTATE_90), 6
    stream = io.BytesIO()
    scene.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


class Asked:
    """A page with a photo on it, and the searches that it asked for, in the order in which it asked: answers may overtake each other."""

    def __init__(self, page: "Page", data: bytes) -> None:
        self.page, self.searches = page, []  # type: ignore[var-annotated]
        page.on("request", self._note)
        page.set_input_files("#file", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": data})
        page.wait_for_selector("#results li button")
        page.wait_for_selector("#stage", state="visible")
        page.wait_for_function("document.querySelector('#sides').ariaBusy === 'false'")  # until then the photo may still move
        self.stage = page.locator("#stage").bounding_box()
        assert self.stage["width"] / self.stage["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.02), "it lies on the picture"

    def _note(self, request: "Request") -> None:
        if request.url.endswith("/v1/search"):
            self.searches.append(request)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a place in the photo lies on the page."""
        return self.stage["x"] + x * self.stage["width"], self.stage["y"] + y * self.stage["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*start))
        mouse.down()
        for share in (0.3, 0.7, 1):
            mouse.move(*self.at(*(a + share * (b - a) for a, b in zip(start, end, strict=True))))
        mouse.up()

    def newest(self, count: int) -> dict | None:
        """What the server took the box of the newest of `count` searches for, as the address of its answer says; None: the whole photo."""
        deadline = monotonic() + 60
        while len(self.searches) < count and monotonic() < deadline:
            self.page.wait_for_timeout(20)
        self.page.wait_for_function("document.querySelector('#sides').ariaBusy === 'false'")
        assert len(self.searches) == count
        box = parse_qs(self.searches[-1].response().headers["content-location"]).get("box")
        return json.loads(box[0]) if box else None


def near(box: dict | None, x: float, y: float, width: float, height: float) -> bool:
    assert box is not None
    return [box[n] for n in ("x", "y", "width", "height")] == pytest.approx([x, y, width, height], abs=0.02)


@pytest.fixture
def page(browser: "Browser", url: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1200, "height": 860}, bypass_csp=True)
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(url)
    yield page
    page.close()
    assert errors == []


@pytest.mark.parametrize("turned", [False, True])
def test_with_a_mouse_it_is_drawn_moved_resized_and_taken_away(page: "Page", turned: bool) -> None:
    asked = Asked(page, photo(turned))
    assert asked.newest(1) is None
    asked.drag((0.2, 0.3), (0.6, 0.7))
    assert near(asked.newest(2), 0.2, 0.3, 0.4, 0.4)
    asked.drag((0.4, 0.5), (0.9, 0.5))
    assert near(asked.newest(3), 0.6, 0.3, 0.4, 0.4), "moved to the edge and no further"
    asked.drag((0.6, 0.3), (0.3, 0.1))
    assert near(asked.newest(4), 0.3, 0.1, 0.7, 0.6), "by a corner"
    page.mouse.click(*asked.at(0.1, 0.9))
    assert asked.newest(5) is None, "a click beside it"
    page.go_back()
    assert near(asked.newest(6), 0.3, 0.1, 0.7, 0.6), "back leads to the box before"
    with page.expect_file_chooser():
        page.get_by_role("button", name="What you asked with: choose another photo").press("Enter")


def test_it_asks_when_it_is_let_go_and_not_before(page: "Page") -> None:
    asked = Asked(page, photo())
    page.mouse.move(*asked.at(0.2, 0.2))
    page.mouse.down()
    for share in (0.3, 0.5, 0.8):
        page.mouse.move(*asked.at(share, share))
    assert asked.newest(1) is None
    assert page.locator("#box").bounding_box()["width"] == pytest.approx(0.6 * asked.stage["width"], abs=6)
    page.mouse.up()
    assert near(asked.newest(2), 0.2, 0.2, 0.6, 0.6)


def test_without_a_box_a_click_on_the_photo_chooses_another(page: "Page") -> None:
    asked = Asked(page, photo())
    # The browser's own chooser wants a click not older than five seconds, which a busy machine cannot promise.
    page.evaluate("document.querySelector('#file').onclick = () => { window.chooses = true; return false; }")
    page.locator("#stage").click()
    page.wait_for_function("window.chooses")
    page.set_input_files("#file", {"name": "q.jpg", "mimeType": "image/jpeg", "buffer": photo(True)})
    page.wait_for_function("document.querySelector('#stage').checkVisibility()")
    assert asked.newest(2) is None


def test_with_the_keyboard_alone(page: "Page") -> None:
    asked = Asked(page, photo())
    page.get_by_role("button", name="Box", exact=True).press("Enter")
    assert near(asked.newest(2), 0.2, 0.2, 0.6, 0.6)
    assert page.evaluate("document.activeElement.id") == "box"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert near(asked.newest(5), 0.26, 0.2, 0.6, 0.6)
    page.keyboard.press("Shift+ArrowUp")
    assert near(asked.newest(6), 0.26, 0.2, 0.6, 0.58)
    assert "26 % from the left, 20 % from the top, 60 % wide, 58 % high" in page.get_attribute("#box", "aria-label")
    page.keyboard.down("ArrowLeft")
    for _ in range(40):
        page.keyboard.down("ArrowLeft")
    assert len(asked.searches) == 6, "while the key is held nothing is asked"
    page.keyboard.up("ArrowLeft")
    assert near(asked.newest(7), 0, 0.2, 0.6, 0.58)
    page.keyboard.press("Delete")
    assert asked.newest(8) is None
    assert page.evaluate("document.activeElement.textContent") == "Box"


def test_an_answer_that_was_overtaken_is_not_shown(page: "Page") -> None:
    asked, held = Asked(page, photo()), []  # type: ignore[var-annotated]
    page.get_by_role("button", name="Box", exact=True).press("Enter")
    assert near(asked.newest(2), 0.2, 0.2, 0.6, 0.6)
    page.route("**/v1/search", lambda route: route.continue_() if held else held.append(route))
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert near(asked.newest(4), 0.24, 0.2, 0.6, 0.6)
    shown = page.locator("#message").text_content()
    with page.expect_response(lambda response: response.status == 503):
        held[0].fulfill(status=503, json={"detail": "this one was overtaken"})
    page.wait_for_timeout(200)
    assert page.locator("#message").text_content() == shown
    assert page.locator("#results li button").count() > 0


def test_with_fingers_it_is_drawn_pinched_and_tapped_away(browser: "Browser", url: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, bypass_csp=True)
    page = context.new_page()
    page.goto(url)
    asked = Asked(page, photo())
    session = context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(asked.at(*p) for p in places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0.3, 0.3))
    for share in (0.4, 0.6, 0.7):
        touch("touchMove", (share, share))
    touch("touchEnd")
    assert near(asked.newest(2), 0.3, 0.3, 0.4, 0.4)
    touch("touchStart", (0.4, 0.5))
    touch("touchStart", (0.4, 0.5), (0.6, 0.5))
    for spread in (0.12, 0.15):
        touch("touchMove", (0.5 - spread, 0.5), (0.5 + spread, 0.5))
    touch("touchMove", (0.35, 0.5))
    assert len(asked.searches) == 2, "one finger is still there"
    touch("touchEnd")
    assert near(asked.newest(3), 0.2, 0.2, 0.6, 0.6), "pinched open by half"
    touch("touchStart", (0.9, 0.9))
    touch("touchEnd")
    assert asked.newest(4) is None
    assert page.evaluate("scrollY") == 0, "the page stays where it is"
    context.close()
