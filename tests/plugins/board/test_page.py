"""The board in a real browser, inside Airflow's own page, over the real API server, MLflow and replicas."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tasks.board.changes import FRESH_S
from tasks.catalog.changes.event import upsert
from tasks.catalog.changes.source import open_changes
from tests.plugins.board.conftest import Stack

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]
RUN = "refresh_index.scheduled--2026-11-30T02-17-00-00-00"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def settled(stack: Stack) -> Stack:
    """No release DAG is under way, and the aliases are as at the start."""
    _, previous, _, live, candidate = stack.versions
    stack.shop.point(blue=live, green=previous, live=live, previous=previous, candidate=candidate)
    with stack.server.client("admin") as client:
        for dag in ("promote_index", "rebuild_index", "rollback_index"):
            unfinished = {"state": ["queued", "running"]}
            for run in client.get(f"/api/v2/dags/{dag}/dagRuns", params=unfinished).json()["dag_runs"]:
                end(client, dag, run["dag_run_id"], "failed")
    return stack


def end(client: httpx.Client, dag: str, run: str, state: str) -> None:
    """Ends a run by hand. Airflow ends none whose teardown is still to come, so the tasks are ended first.

    Ending a task clears those after it: a DAG whose tasks cannot be cleared (one with a deadline, in Airflow 3.3.2) fails here.
    """
    path = f"/api/v2/dags/{dag}/dagRuns/{run}"
    for task in client.get(f"{path}/taskInstances").json()["task_instances"]:
        done = client.patch(f"{path}/taskInstances/{task['task_id']}", json={"new_state": state})
        assert done.status_code == 200, done.text
    ended = client.patch(path, json={"state": state}).json()
    assert ended["state"] == state, ended


def visit(browser: "Browser", stack: Stack, user: str, **options: Any) -> "Page":
    """The board alone, as this user; a script error fails the test."""
    context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
    context.set_default_timeout(120_000)
    context.add_cookies([{"name": "_token", "value": stack.server.token(user), "url": stack.server.url}])
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(f"{stack.server.url}/vitrine/")
    page.wait_for_selector("body[data-ready]")
    return page


def test_it_is_a_page_of_airflow_and_its_links_leave_the_frame(browser: "Browser", settled: Stack) -> None:
    _, _, _, live, _ = settled.versions
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    context.add_cookies([{"name": "_token", "value": settled.server.token("operator"), "url": settled.server.url}])
    page = context.new_page()
    page.goto(settled.server.url)
    page.get_by_role("link", name="Releases").click()
    board: FrameLocator = page.frame_locator("iframe")
    board.locator("#live .headline b").wait_for()
    assert board.locator("#live .headline b").inner_text() == f"Version {live}"
    board.locator(f"#version-{live} summary").click()
    with context.expect_page() as opened:
        board.locator(f"#version-{live} .links a", has_text="MLflow run").click()
    assert opened.value.url.startswith(f"{settled.server.settings.mlflow_uri}/#/runs/")
    context.close()


def test_the_state_of_everything_is_on_one_page(browser: "Browser", settled: Stack, tmp_path: Path) -> None:
    older, previous, failed, live, candidate = settled.versions
    page = visit(browser, settled, "operator")
    assert page.locator("#live .headline b").inner_text() == f"Version {live}"
    page.get_by_text("on all 2 replicas").wait_for()
    assert [c.inner_text() for c in page.locator("#versions > li > .row > h3").all()][:5] == [  # other tests' follow
        f"Version {n}" for n in (candidate, live, failed, previous, older)
    ]
    assert "photo_recall" in page.locator(f"#version-{failed} .problem").inner_text()
    assert page.locator(f"#version-{failed} button").count() == 0
    page.locator(f"#version-{candidate} summary").click()
    page.locator(f"#version-{candidate} .chain li").nth(6).wait_for()
    gates = page.locator(f"#version-{candidate} tbody tr").all_inner_texts()
    assert len(gates) == 5
    assert "0.94" in gates[1]
    assert "catalogue" in page.locator(f"#version-{candidate} .chain").inner_text()
    charts = page.locator("svg.chart")
    assert charts.count() == 3
    assert charts.nth(0).locator("circle.failed").count() >= 1  # other tests' versions may follow
    assert f"version {live}: 0.934, passed" in str(charts.nth(0).get_attribute("aria-label"))
    assert page.locator("#schedule tbody tr").count() == 8
    assert "Builds a new index version" in page.locator("#schedule").inner_text()
    page.screenshot(path=tmp_path / "board.png", full_page=True)
    assert (tmp_path / "board.png").stat().st_size > 30_000
    page.context.close()


@pytest.mark.parametrize(
    ("values", "unit", "texts"),
    [
        ([0.004, 0.006], "share", ["0.00", "0.01", "0.02"]),
        ([0.87, 0.94, 0.9], "share", ["0.85", "0.90", "0.95"]),
        ([1, 1], "share", ["0.99", "1.00"]),
        ([0.5, 0.95], "share", ["0.4", "0.6", "0.8", "1.0"]),
        ([18, 31, 200], "ms", ["0", "100", "200"]),
        ([0.4], "ms", ["0.0", "0.5", "1.0"]),
    ],
)
def test_an_axis_has_few_round_numbers_that_differ(
    browser: "Browser", settled: Stack, values: list[float], unit: str, texts: list[str]
) -> None:
    page = visit(browser, settled, "viewer")
    code = "async ([values, unit]) => (await import('./static/draw.js')).ticks(values, unit).map((t) => t.text)"
    assert page.evaluate(code, [values, unit]) == texts
    page.context.close()


def test_a_red_run_says_why(browser: "Browser", settled: Stack) -> None:
    """Ending a run by hand writes its note as the scheduler does (plugins/board/run_notes.py); a sentence comes from a real task."""
    said = "validate_snapshot failed: snapshot: the price (price) is -1, 0 to 1e+07 is allowed (products p003)"
    with settled.server.client("operator") as client:
        run = client.post("/api/v2/dags/rebuild_index/dagRuns", json={"logical_date": None}).json()["dag_run_id"]
    with settled.server.client("admin") as client:
        end(client, "rebuild_index", run, "failed")
        page = visit(browser, settled, "viewer")
        page.locator("#runs .problem", has_text="failed: it ended without an error message").first.wait_for()
        page.context.close()
        noted = client.patch(f"/api/v2/dags/rebuild_index/dagRuns/{run}", json={"note": said})
        assert noted.status_code == 200, noted.text
    page = visit(browser, settled, "viewer")
    page.locator("#runs .problem", has_text=said).wait_for()
    page.context.close()


def test_encoders_show_what_their_evaluation_measured(browser: "Browser", settled: Stack) -> None:
    reason = "Recall@10 on photos: 0.040, which must be more than the 0.080 of a colour histogram"
    gates = [
        {"name": "parity", "value": 1e-6, "threshold": 1e-4, "passed": True, "reason": "Largest difference: 1e-06"},
        {"name": "beats_colour_histogram_recall_at_10", "value": 0.04, "threshold": 0.08, "passed": False, "reason": reason},
    ]
    version = settled.shop.encoder(seed=5)
    settled.shop.evaluate(version, *gates)
    page = visit(browser, settled, "viewer")
    entry = page.locator("#encoders li", has_text=f"Version {version}").first
    assert reason in entry.locator(".problem").inner_text()
    entry.locator("summary").click()
    assert "Largest difference: 1e-06" in entry.locator("table").inner_text()
    page.context.close()


def test_an_embedding_run_shows_its_price_and_how_far_it_is(browser: "Browser", settled: Stack) -> None:
    pace = {"images_per_s": 50.0, "source": "measured over 2000 pictures by run rebuild_index.one", "cores": 2.0, "gpus": 0.0}
    plan = {
        "encoder": "7", "products": 9000, "pictures": 9000, "stored": 1000, "to_embed": 8000, "pace": pace, "hours": 0.0444,
        "cost": 0.36, "bytes": 12 * 2**20, "needs_approval": True, "summary": "",
    }  # fmt: skip
    progress = {"embed.progress.done": 2000.0, "embed.progress.elapsed_s": 50.0, "embed.progress.at_s": time.time()}
    with settled.registry.run("indexes", "rebuild_index.night", "index night", {"embed.plan": json.dumps(plan)}) as run:
        page = visit(browser, settled, "viewer")
        text = page.locator("#embedding").inner_text()
        assert "awaits approval" in text
        assert "8,000" in text
        assert "3 min" in text
        assert "measured over 2000 pictures" in text
        run.log_now(progress)
        page.get_by_role("button", name="Refresh").click()
        page.locator("#embedding progress").wait_for()
        assert "2,000 of 8,000 pictures, 40.0 a second, 3 min left" in page.locator("#embedding").inner_text()
    page.context.close()


def test_after_a_rollback_the_other_version_is_not_gone_back_to(browser: "Browser", settled: Stack) -> None:
    _, previous, _, live, _ = settled.versions
    settled.shop.point(live=previous, previous=live)
    page = visit(browser, settled, "operator")
    page.get_by_role("button", name=f"Return to version {live}").click()
    assert f"Version {live} was live before version {previous}" in page.locator("#confirm").inner_text()
    page.context.close()


def test_promoting_by_keyboard_asks_first_and_shows_the_result(browser: "Browser", settled: Stack) -> None:
    """Airflow's scheduler does not run here: the test ends the run and moves the aliases as the DAG does."""
    _, _, _, live, candidate = settled.versions
    page = visit(browser, settled, "operator")
    button = page.locator(f"#version-{candidate}").get_by_role("button", name="Promote")
    button.focus()
    page.keyboard.press("Enter")
    assert f"instead of version {live}" in page.locator("#confirm").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#confirm").is_visible()
    assert page.locator("#runs .queued").count() == 0
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#confirm-yes").press("Enter")
    page.get_by_text("promote_index is under way").wait_for()
    row = page.locator("#runs tbody tr").first
    row.locator(".queued").wait_for()
    assert f"version {candidate}" in row.inner_text()
    assert "operator" in row.inner_text()

    settled.shop.point(green=candidate, previous=live, live=candidate)
    with settled.server.client("admin") as client:
        run = client.get("/api/v2/dags/promote_index/dagRuns", params={"order_by": "-id"}).json()["dag_runs"][0]["dag_run_id"]
        end(client, "promote_index", run, "success")
    page.get_by_text(f"is done. Version {candidate} is live.").wait_for()
    assert page.locator("#live .headline b").inner_text() == f"Version {candidate}"
    assert page.get_by_role("button", name=f"Roll back to version {live}").is_enabled()
    page.context.close()


def test_a_refusal_of_the_server_is_shown_in_its_words(browser: "Browser", settled: Stack) -> None:
    page = visit(browser, settled, "operator")
    with settled.server.client("operator") as client:
        assert client.post("/vitrine/actions/rebuild").status_code == 202
    page.get_by_role("button", name="Rebuild").click()
    page.locator("#confirm-yes").click()
    page.get_by_text("rebuild_index is under way already, started by operator").wait_for()
    page.context.close()


def test_a_viewer_sees_everything_and_can_press_nothing(browser: "Browser", settled: Stack) -> None:
    page = visit(browser, settled, "viewer")
    buttons = page.locator("#live button, #versions button")
    assert buttons.count() >= 4
    assert all(b.is_disabled() for b in buttons.all())
    assert "actions need an operator" in page.locator("#who").inner_text()
    page.context.close()


def test_a_replica_that_is_down_is_seen_and_so_is_its_return(browser: "Browser", settled: Stack) -> None:
    from tests.registered import Running

    lost = settled.replicas[1]
    lost.stop()
    page = visit(browser, settled, "viewer")
    page.get_by_text("1 of 2 replicas need attention").wait_for()
    assert "no answer (ConnectError)" in page.locator("#replicas").inner_text()
    page.context.close()
    settled.replicas[1] = Running(settled.server.settings.mlflow_uri, settled.shop.home / "replica-1", lost.port)
    page = visit(browser, settled, "viewer")
    page.get_by_text("on all 2 replicas").wait_for(timeout=60_000)
    page.context.close()


def test_it_fits_a_phone_in_the_dark(browser: "Browser", settled: Stack) -> None:
    page = visit(browser, settled, "operator", viewport={"width": 390, "height": 800}, color_scheme="dark")
    for summary in page.locator("#versions summary").all():
        summary.click()
    page.locator(".chain li").nth(10).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(c) for c in ground[4:-1].split(",")) < 150
    page.context.close()


def test_changes_that_do_not_reach_shoppers_are_on_the_page(browser: "Browser", settled: Stack, tmp_path: Path) -> None:
    """The queue is real; versions of this stack have nothing in quarantine, so that part of the answer is the test's."""
    settings = settled.server.settings
    database = Path(settings.catalog_uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    database.touch()
    page = visit(browser, settled, "viewer")
    page.get_by_text("pending changes").wait_for()
    page.get_by_text("is in quarantine").wait_for()
    assert page.locator("#changes table").count() == 0
    page.screenshot(path=tmp_path / "changes-none.png", full_page=True)
    with open_changes(settings.changes, settings.catalog_uri, settings.home) as source:
        source.send([upsert(f"shoe-{n}", datetime.now(UTC), {"title": "x", "image": "x.jpg"}) for n in range(9)])
        said = "column specs holds {'upper': 'leather', 'sizes': [36, 37]} (a JSON object); the index has string there"
        source.dead_letter([(message, said) for message in source.receive(7, 0)])
    products = [
        {"product_id": f"shoe-{90 + n}", "image": f"images/shoe-{90 + n}.jpg", "reason": why, "detail": words, "run": RUN, "url": url}
        for n, (why, words, url) in enumerate([
            ("missing", "there is no such file below /srv/shop", f"{settled.server.url}/dags/refresh_index/runs/x"),
            ("not_an_image", "cannot identify image file", ""),
        ])
    ]  # fmt: skip
    quarantine = {"version": "7", "aliases": ["live"], "count": 31, "products": products, "problem": ""}
    page.route("**/vitrine/changes", lambda route: route.fulfill(json=route.fetch().json() | {"quarantine": quarantine}))
    time.sleep(FRESH_S)
    page.get_by_role("button", name="Refresh").click()
    section = page.locator("#changes")
    section.get_by_text("vitrine changes requeue").wait_for()
    text = section.inner_text()
    assert "specs holds" in text
    assert "shoe-91" in text
    assert "These are the newest 2 of 31." in text
    assert section.locator("#more-letters summary").inner_text() == "2 more"
    addresses = [a.get_attribute("href") or "" for a in section.get_by_role("link", name="Download all as CSV").all()]
    assert [a.rsplit("/", 1)[1] for a in addresses] == ["dead-letters.csv", "quarantine.csv"]
    with settled.server.client("viewer") as client:
        lists = [client.get(f"/vitrine/{name}") for name in ("dead-letters.csv", "quarantine.csv")]
    assert [a.headers["content-disposition"] for a in lists] == [
        'attachment; filename="dead-letters.csv"', 'attachment; filename="quarantine.csv"',
    ]  # fmt: skip
    assert lists[0].text.count("specs holds") == 7
    assert lists[1].text == "product_id,image,reason,detail,run\r\n"
    page.screenshot(path=tmp_path / "changes.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    section.screenshot(path=tmp_path / "changes-phone.png")
    away = {"queue": {"problem": "the queue cannot be read: Kafka does not answer at 127.0.0.1:9"}}
    page.unroute("**/vitrine/changes")
    page.route("**/vitrine/changes", lambda route: route.fulfill(json=route.fetch().json() | away))
    page.get_by_role("button", name="Refresh").click()
    section.get_by_text("Kafka does not answer").wait_for()
    assert page.locator("#versions > li").count() >= 5, "the rest of the page is there"
    page.context.close()


def test_before_the_first_version_it_says_how_one_comes_about(browser: "Browser", settled: Stack) -> None:
    page = visit(browser, settled, "operator")
    empty = {
        "versions": [],
        "live": "",
        "previous": "",
        "candidate": "",
        "slots": {"blue": "", "green": ""},
        "charts": [],
        "lineage": [],
    }
    page.route("**/vitrine/data", lambda route: route.fulfill(json=route.fetch().json() | empty))
    page.get_by_role("button", name="Refresh").click()
    page.get_by_text("Nothing is live yet").wait_for()
    assert "train_encoder" in page.locator("#live").inner_text()
    assert page.get_by_role("button", name="Build the first version").is_enabled()
    page.context.close()
