"""A fresh home: runs that nobody asked for are skipped until the first success; a person's runs fail and say what to do."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.registry import ENCODER_MODEL, Registry
from tasks.settings import Settings
from tests.airflow_server import airflow, environment
from tests.registered import Shop
from tests.servers import free_port, mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FIRST = {
    "train_encoder": ("check_preconditions", "there is no such database"),
    "rebuild_index": ("check_preconditions", "there is no such database"),
    "refresh_index": ("drain_changes", "run the DAG rebuild_index first"),
    "watch_quality": ("look", "run the DAG rebuild_index first"),
    "promote_index": ("choose_slot", "run the DAG rebuild_index first"),
}
"""Each DAG that needs an input: its first task that lacks it, and the words that say what to do."""


def done(environ: dict[str, str], runs: list) -> tuple[list[dict], str]:
    """Each run's record, and everything that was printed."""
    printed = airflow(environ, "tests.dags.in_process", json.dumps(runs))
    return [json.loads(line[4:]) for line in printed.splitlines() if line.startswith("RUN ")], printed


@pytest.fixture
def mlflow(mlflow_tables: Path, tmp_path: Path) -> Iterator[str]:
    """One of its own: nothing was ever registered there."""
    with mlflow_server(tmp_path / "mlflow-server", mlflow_tables) as uri:
        yield uri


def test_automatic_runs_wait_for_the_first_inputs_and_manual_runs_say_what_is_missing(
    mlflow: str, airflow_tables: Path, tmp_path: Path
) -> None:
    settings = replace(
        Settings(), home=tmp_path, mlflow_uri=mlflow, airflow_password="admin", encoder_preset="tiny", serving_urls=(),
        airflow_url=f"http://127.0.0.1:{free_port()}",
    )  # fmt: skip
    environ = environment(settings, airflow_tables)
    by_hand, printed = done(environ, [[name, {}] for name in (*FIRST, "rollback_index")])
    for run in by_hand:
        assert (run["type"], run["state"]) == ("manual", "failed"), run
        assert run["tasks"].get("settle", "success") == "success", "there is nothing to clean up"
    for run in by_hand[: len(FIRST)]:
        task, words = FIRST[run["dag"]]
        assert run["tasks"][task] == "failed"
        assert words in printed

    automatic = [[name, {}, "asset_triggered" if name == "promote_index" else "scheduled"] for name in FIRST]
    automatic += [["rebuild_index", {}, "asset_triggered"]]
    others = [[name, {}, "scheduled"] for name in ("watch_champion", "collect_garbage")]
    fresh, _ = done(environ, automatic + others)
    for run in fresh:
        assert run["state"] == "success", run
        assert not set(run["tasks"].values()) & {"failed", "upstream_failed"}, run
    for (name, _, kind), run in zip(automatic, fresh, strict=False):
        task, words = FIRST[name]
        assert (run["type"], run["tasks"][task]) == (kind, "skipped")
        assert words in run["summaries"][task]
        assert {state for task, state in run["tasks"].items() if task != "settle"} == {"skipped"}, "nothing ran on nothing"

    registry = Registry(mlflow, tmp_path / "cache")
    shop = Shop(tmp_path, registry)
    shop.point(candidate=shop.version())
    registry.set_alias(ENCODER_MODEL, "champion", shop.encoder())
    lost, printed = done(environ, [["train_encoder", {}, "scheduled"], ["rebuild_index", {}, "scheduled"]])
    for run in lost:
        assert (run["state"], run["tasks"]["check_preconditions"]) == ("failed", "failed"), (
            "there was a catalogue, and it is gone"
        )
    assert printed.count("there is no such database") >= 2
