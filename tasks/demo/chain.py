"""The chain train_encoder -> rebuild_index -> promote_index, started once and followed through its assets."""

import time

from rich.console import Console

from tasks.airflow import Airflow
from tasks.demo.follow import Follower
from tasks.errors import VitrineError
from tasks.settings import Settings

DAGS = ("train_encoder", "rebuild_index", "promote_index")
PARSE_LIMIT_S = 120.0
ASSET_LIMIT_S = 90.0
RUN_LIMIT_S = 3 * 3600.0


def run_chain(settings: Settings, console: Console) -> None:
    """Trains (or finds the encoder of the same data and recipe), indexes what changed, promotes what is new."""
    airflow = Airflow(settings.airflow_url, settings.airflow_user, settings.airflow_password)
    _wait_for_dags(airflow, console)
    follower = Follower(airflow, console, settings.home / "progress")
    known = {dag: {r["dag_run_id"] for r in airflow.runs(dag)} for dag in DAGS}

    train = airflow.trigger("train_encoder")
    follower.follow("train_encoder", train, RUN_LIMIT_S)
    decision = airflow.result("train_encoder", train, "judge")
    console.print(f"  {decision['summary']}")

    rebuild = follower.next_run("rebuild_index", known["rebuild_index"], ASSET_LIMIT_S) if decision["promote"] else None
    rebuild = rebuild or airflow.trigger("rebuild_index")
    follower.follow("rebuild_index", rebuild, RUN_LIMIT_S)
    states = {t.task: t.state for t in airflow.tasks("rebuild_index", rebuild)}
    if states["embed"] == "skipped":
        console.print("  nothing changed since the live version: no image embedded, no shard built, the live version is kept")
        return
    embedded = airflow.result("rebuild_index", rebuild, "embed")
    console.print(
        f"  {embedded['embedded_now']} images embedded now, {embedded['reused']} reused, {embedded['quarantined']} in quarantine"
    )

    promote = follower.next_run("promote_index", known["promote_index"], ASSET_LIMIT_S)
    if promote is None:
        raise VitrineError(f"the candidate was published, but Airflow started no promote_index: look at {settings.airflow_url}")
    follower.follow("promote_index", promote, RUN_LIMIT_S)
    flipped = airflow.result("promote_index", promote, "flip")
    console.print(f"  {flipped['summary']}")


def _wait_for_dags(airflow: Airflow, console: Console) -> None:
    """Returns once Airflow has parsed the DAGs; a broken DAG file is an error with its last line."""
    end = time.monotonic() + PARSE_LIMIT_S
    with console.status("waiting for Airflow to read the DAGs"):
        while time.monotonic() < end:
            if set(DAGS) <= airflow.dags():
                return
            if errors := airflow.import_errors():
                raise VitrineError("Airflow cannot read a DAG: " + "; ".join(errors))
            time.sleep(1)
    raise VitrineError(f"Airflow did not read the DAGs within {PARSE_LIMIT_S:.0f} s; see {airflow.url}")
