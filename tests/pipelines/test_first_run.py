"""A fresh home: runs that nobody asked for are skipped until the first success; a person's runs fail and say what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.registry import ENCODER_MODEL, Registry
from tasks.settings import Settings
from tests.airflow_server import airflow, environment
from tests.catalog.changes.refreshed import own_mlflow
from tests.registered import Shop
from tests.servers import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("airflow"),
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FIRST = {
    "train_encoder": ("check_preconditions", "there is no such database"),
    "rebuild_index": ("check_preconditions", "there is no such database"),
    "refresh_index": ("drain_changes", "run the DAG rebuild_index first"),
    "watch_quality": ("look", "run the DAG rebuild_index first"),
    "promote_index": ("choose_slot", "run the DAG rebuild_index first"),
}
"""Each DAG that needs an input: its first task that lacks it, and the words that say what to do."""


def done(environ: dict[str, str], runs: list) -> list[tuple[dict, str]]:
    """Each run's record, and what was printed while it ran."""
    printed = airflow(environ, "tests.dags.in_process", json.dumps(runs))
    found, said = [], ""
    for line in printed.splitlines(keepends=True):
        if line.startswith("RUN "):
            found.append((json.loads(line[4:]), said))
            said = ""
        else:
            said += line
    return found


def test_automatic_runs_wait_for_the_first_inputs_and_manual_runs_say_what_is_missing(
    mlflow_tables: Path, airflow_tables: Path, tmp_path: Path
) -> None:
    mlflow = own_mlflow(tmp_path, mlflow_tables)
    settings = replace(
        Settings(), home=tmp_path, mlflow_uri=mlflow, airflow_password="admin", encoder_preset="tiny", serving_urls=(),
        airflow_url=f"http://127.0.0.1:{free_port()}",
    )  # fmt: skip
    environ = environment(settings, airflow_tables)
    manual = [[name, {}] for name in (*FIRST, "rollback_index")]
    automatic = [[name, {}, "asset_triggered" if name == "promote_index" else "scheduled"] for name in FIRST]
    automatic += [["rebuild_index", {}, "asset_triggered"]]
    others = [[name, {}, "scheduled"] for name in ("watch_champion", "collect_garbage")]
    runs = done(environ, manual + automatic + others)
    by_hand, fresh = runs[: len(manual)], [run for run, _ in runs[len(manual) :]]
    for run, said in by_hand:
        assert (run["type"], run["state"]) == ("manual", "failed"), run
        assert run["tasks"].get("settle", "success") == "success", "there is nothing to clean up"
        if run["dag"] in FIRST:
            task, words = FIRST[run["dag"]]
            assert run["tasks"][task] == "failed"
            assert words in said
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
    for run, said in done(environ, [["train_encoder", {}, "scheduled"], ["rebuild_index", {}, "scheduled"]]):
        assert (run["state"], run["tasks"]["check_preconditions"]) == ("failed", "failed"), (
            "there was a catalogue, and it is gone"
        )
        assert "there is no such database" in said
