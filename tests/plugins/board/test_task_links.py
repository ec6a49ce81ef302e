"""The buttons on a task's page, as Airflow's own API gives them."""

import pytest

from tests.plugins.board.conftest import Stack

pytestmark = pytest.mark.slow


def test_a_task_shows_the_links_it_returned_and_no_others(stack: Stack) -> None:
    with stack.server.client("admin") as client:
        started = client.post("/api/v2/dags/train_encoder/dagRuns", json={"logical_date": None})
        assert started.status_code == 200, started.text
        run = f"/api/v2/dags/train_encoder/dagRuns/{started.json()['dag_run_id']}/taskInstances"
        links = {"MLflow run": "http://mlflow/#/runs/1", "Data docs": "javascript:alert(1)", "Somewhere": "http://else"}
        made = client.post(f"{run}/judge/xcomEntries", json={"key": "return_value", "value": {"version": "1", "links": links}})
        assert made.status_code == 201, made.text
        made = client.post(f"{run}/train_teacher/xcomEntries", json={"key": "return_value", "value": ["no", "links"]})
        assert made.status_code == 201, made.text
        shown = client.get(f"{run}/judge/links").json()["extra_links"]
        assert shown == {"MLflow run": "http://mlflow/#/runs/1", "Model version": None, "Data docs": None}
        for task in ("train_teacher", "take_snapshot"):
            assert set(client.get(f"{run}/{task}/links").json()["extra_links"].values()) == {None}


def test_the_plugin_loads_whole_and_is_in_the_navigation(stack: Stack) -> None:
    with stack.server.client("admin") as client:
        assert client.get("/api/v2/plugins/importErrors").json()["total_entries"] == 0
        plugin = next(p for p in client.get("/api/v2/plugins").json()["plugins"] if p["name"] == "vitrine")
        assert {v["name"]: v["href"] for v in plugin["external_views"]} == {
            "Releases": "/vitrine/", "MLflow": stack.server.settings.mlflow_uri, "Search page": stack.replicas[0].url,
        }  # fmt: skip
