"""Every route of the board over the real API server: who is let in, who may act, and that an action was meant."""

import subprocess
import sys

import httpx
import pytest

from tasks.settings import PROJECT
from tests.plugins.board.conftest import Stack

pytestmark = pytest.mark.slow

READS = (
    "/",
    "/data",
    "/changes",
    "/quarantine.csv",
    "/dead-letters.csv",
    "/runs",
    "/lineage/1",
    "/trace?product=p001",
    "/static/board.js",
    "/static/changes.js",
    "/static/gates.js",
    "/static/runs.js",
    "/static/words.js",
    "/static/board.css",
    "/static/icon.svg",
)
ACTIONS = {"promote": {"version": "1"}, "rollback": {}, "rebuild": {}}
CODE = """
from plugins.board.app import create_app
print("\\n".join(f"{sorted(r.methods - {'HEAD'})[0]} {r.path}" for r in create_app(None, None).routes))
"""


def test_this_file_knows_every_route(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env=stack.server.environment,
        cwd=PROJECT,
    )
    routes = {line for line in done.stdout.splitlines() if line.startswith(("GET ", "POST "))}
    assert routes == {
        "GET /", "GET /static/{name}", "GET /data", "GET /changes", "GET /quarantine.csv", "GET /dead-letters.csv",
        "GET /runs", "GET /lineage/{version}", "GET /trace",
        "POST /actions/promote", "POST /actions/rollback", "POST /actions/rebuild",
    }  # fmt: skip


@pytest.mark.parametrize("path", READS)
def test_nothing_is_read_without_a_valid_token(stack: Stack, path: str) -> None:
    with stack.server.client() as client:
        assert client.get(f"/vitrine{path}").status_code == 401
        assert client.get(f"/vitrine{path}", headers={"Authorization": "Bearer made.up.token"}).status_code == 403
        assert client.get(f"/vitrine{path}", headers={"Cookie": "_token=made.up.token"}).status_code == 403


@pytest.mark.parametrize("path", READS)
def test_a_viewer_sees_and_a_user_without_a_role_does_not(stack: Stack, path: str) -> None:
    path = path.replace("/1", f"/{stack.versions[0]}")
    with stack.server.client("viewer") as viewer, stack.server.client("nobody") as nobody:
        seen = viewer.get(f"/vitrine{path}")
        assert seen.status_code == (422 if path.startswith(("/trace", "/dead-letters")) else 200) or seen.status_code == 200, (
            seen.text
        )
        refused = nobody.get(f"/vitrine{path}")
        assert (refused.status_code, "for those who may see" in refused.text) == (403, True)


@pytest.mark.parametrize("action", ACTIONS)
def test_only_an_operator_acts(stack: Stack, action: str) -> None:
    path, body = f"/vitrine/actions/{action}", ACTIONS[action]
    with stack.server.client() as client:
        assert client.post(path, json=body).status_code == 401
        assert client.post(path, json=body, headers={"Authorization": "Bearer made.up.token"}).status_code == 403
    for user in ("nobody", "viewer", "someone"):
        with stack.server.client(user) as client:
            assert client.post(path, json=body).status_code == 403, user
            assert client.get(path).status_code == 405
    with stack.server.client("viewer") as client:
        told = client.post(path, json=body).json()["detail"]
        assert told.startswith(f"{action} is for operators")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-vitrine": "something else", "sec-fetch-site": "same-origin"},
        {"x-vitrine": "release-board", "sec-fetch-site": "cross-site"},
        {"x-vitrine": "release-board", "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
def test_a_request_that_another_site_made_a_browser_send_does_nothing(stack: Stack, headers: dict[str, str]) -> None:
    cookie = {"Cookie": f"_token={stack.server.token('operator')}"}
    with stack.server.client() as client:
        before = _runs(stack, "rebuild_index")
        refused = client.post("/vitrine/actions/rebuild", json={}, headers=headers | cookie)
        assert (refused.status_code, "did not come from the release board" in refused.text) == (403, True)
        assert _runs(stack, "rebuild_index") == before


def test_an_operator_promotes_as_themselves_and_only_what_passed_its_gates(stack: Stack) -> None:
    older, _, failed, live, candidate = stack.versions
    with stack.server.client("operator") as client:
        refused = client.post("/vitrine/actions/promote", json={"version": failed})
        assert (refused.status_code, "photo_recall" in refused.text) == (409, True)
        refused = client.post("/vitrine/actions/promote", json={"version": live})
        assert (refused.status_code, "live already" in refused.text) == (409, True)
        assert client.post("/vitrine/actions/promote", json={"version": "99999"}).status_code == 422
        assert client.post("/vitrine/actions/promote", json={"version": "1; drop"}).status_code == 422
        started = client.post("/vitrine/actions/promote", json={"version": candidate})
        assert started.status_code == 202, started.text
        again = client.post("/vitrine/actions/promote", json={"version": older})
        assert (again.status_code, "under way already, started by operator" in again.text) == (409, True)
        run = client.get(f"/api/v2/dags/promote_index/dagRuns/{started.json()['run']}").json()
        assert (run["triggering_user_name"], run["conf"]["version"]) == ("operator", candidate)
        assert run["note"] == f"promote index version {candidate}, from the release board"
        shown = client.get("/vitrine/runs").json()["runs"]
        assert any(r["run"] == run["dag_run_id"] and r["by"] == "operator" and r["state"] == "queued" for r in shown)


def test_going_back_names_the_version_that_the_page_showed(stack: Stack) -> None:
    _, previous, _, _, _ = stack.versions
    with stack.server.client("operator") as client:
        assert client.post("/vitrine/actions/rollback", json={"version": "1; drop"}).status_code == 422
        started = client.post("/vitrine/actions/rollback", json={"version": previous})
        assert started.status_code == 202, started.text
        run = client.get(f"/api/v2/dags/rollback_index/dagRuns/{started.json()['run']}").json()
        assert (run["triggering_user_name"], run["conf"]) == ("operator", {"version": previous})
        assert run["note"] == f"roll back to index version {previous}, from the release board"
        client.patch(f"/api/v2/dags/rollback_index/dagRuns/{run['dag_run_id']}", json={"state": "failed"})


def test_the_page_lets_nothing_from_outside_in(stack: Stack) -> None:
    with stack.server.client("viewer") as client:
        page = client.get("/vitrine/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert page.headers["cache-control"] == "no-store"
        for name in ("board.html", "../app.py", "%2e%2e%2fapp.py", "nothing.js"):
            assert client.get(f"/vitrine/static/{name}").status_code == 404
        for path in ("/docs", "/openapi.json", "/redoc"):
            assert client.get(f"/vitrine{path}").status_code == 404


def test_a_person_without_a_session_is_sent_to_log_in(stack: Stack) -> None:
    with stack.server.client() as client:
        sent = client.get("/vitrine/", headers={"Accept": "text/html"})
        assert sent.status_code == 307
        assert "/auth/login?next=" in sent.headers["location"]


def test_when_mlflow_is_away_the_board_says_so(stack: Stack) -> None:
    """Asked of the data behind the page: the server of this test is the only one, and others need it."""
    from datetime import UTC, datetime

    from tasks.board.board_data import Board
    from tasks.errors import VitrineError
    from tasks.registry import Registry

    class Away(Registry):
        def versions(self, model: str, limit: int = 0) -> list:
            raise httpx.ConnectError("connection refused")

    away = Away("http://127.0.0.1:9", stack.shop.home / "away")
    with pytest.raises(VitrineError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer: connection refused"):
        Board(lambda: away, list).read(datetime.now(UTC))


def _runs(stack: Stack, dag: str) -> int:
    with stack.server.client("admin") as client:
        return int(client.get(f"/api/v2/dags/{dag}/dagRuns").json()["total_entries"])
