"""Every DAG's trigger form in a real browser: it can be submitted exactly as it opens."""

from collections.abc import Iterator
from shutil import which
from typing import TYPE_CHECKING

import pytest

from tests.airflow_server import Server
from tests.plugins.board.conftest import Stack

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def server(stack: Stack) -> Server:
    """Airflow without a scheduler: runs are made and stay queued. These tests come last of those that share it."""
    return stack.server


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator["Page"]:
    """A browser in which an operator has logged in."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(60_000)
        page.goto(server.url)
        page.locator("input[name=username]").fill("operator")
        page.locator("input[name=password]").fill("operator")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Dags").wait_for()
        yield page
        browser.close()


def open_form(page: "Page", server: Server, dag: str) -> None:
    page.goto(f"{server.url}/dags/{dag}")
    page.get_by_test_id("trigger-dag-button").click()
    page.get_by_test_id("trigger-dag-submit").wait_for()


def submit(page: "Page", dag: str) -> str:
    """Presses the form's Trigger button; gives the id of the run that Airflow made."""
    button = page.get_by_test_id("trigger-dag-submit")
    page.wait_for_function("() => !document.querySelector('[data-testid=trigger-dag-submit]').disabled")
    with page.expect_response(lambda r: r.request.method == "POST" and r.url.endswith(f"/dags/{dag}/dagRuns")) as answered:
        button.click()
    assert answered.value.ok, answered.value.text()
    return str(answered.value.json()["dag_run_id"])


def test_every_form_is_accepted_with_its_defaults(page: "Page", server: Server) -> None:
    with server.client("admin") as client:
        dags = [d["dag_id"] for d in client.get("/api/v2/dags", params={"limit": 100}).json()["dags"]]
        assert "rollback_index" in dags
        for dag in dags:
            open_form(page, server, dag)
            run = submit(page, dag)
            made = client.get(f"/api/v2/dags/{dag}/dagRuns/{run}").json()
            params = client.get(f"/api/v2/dags/{dag}/details").json()["params"] or {}
            assert (made["run_type"], made["state"], made["triggering_user_name"]) == ("manual", "queued", "operator")
            assert made["conf"] == {name: param["value"] for name, param in params.items()}, dag


def test_a_field_that_was_filled_and_emptied_again_counts_as_empty(page: "Page", server: Server) -> None:
    open_form(page, server, "rollback_index")
    field = page.locator("input[name=element_version]")
    field.fill("12")
    field.fill("")
    run = submit(page, "rollback_index")
    with server.client("admin") as client:
        assert client.get(f"/api/v2/dags/rollback_index/dagRuns/{run}").json()["conf"]["version"] in (None, "")
