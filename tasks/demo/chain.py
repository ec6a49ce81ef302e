"""Starts the chain train_encoder -> rebuild_index -> promote_index and follows it through its assets."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape

from tasks.demo.airflow import Airflow
from tasks.demo.follow import Follower
from tasks.errors import VitrineError
from tasks.settings import Settings

DAGS = ("train_encoder", "rebuild_index", "promote_index")
PARSE_LIMIT_S = 120.0
ASSET_LIMIT_S = 90.0
RUN_LIMIT_S = 3 * 3600.0
WHAT_CAN_BE_DONE = (
    "What can be done: start it again (what was trained is kept and only judged again, which helps where a busy machine made it "
    "slow); train for longer (train_encoder in Airflow, form field Epochs) or with another preset (VITRINE_ENCODER_PRESET); label "
    "more train photos; or, knowing what it costs, change the threshold whose setting the gate names. The run judge in MLflow's "
    "experiment encoders holds the whole report."
)


def run_chain(settings: Settings, console: Console) -> None:
    """Trains (or reuses an encoder of the same data and recipe), rebuilds if anything changed, promotes a new version.

    Raises VitrineError with the reason of the first run that failed, or did not do what the next one needs.
    """
    airflow = Airflow(settings.airflow_url, settings.airflow_user, settings.airflow_password)
    _wait_for_dags(airflow, console)
    follower = Follower(airflow, console, settings.home / "progress")
    known = {dag: {r["dag_run_id"] for r in airflow.runs(dag)} for dag in DAGS}

    train = airflow.trigger("train_encoder")
    follower.follow("train_encoder", train, RUN_LIMIT_S)
    decision = airflow.result("train_encoder", train, "judge")
    if decision["failed"]:
        _tell_gates(decision, console)
    else:
        console.print(f"  {escape(decision['summary'])}")
    if not decision["promote"] and not decision["against"]:
        raise VitrineError(
            f"encoder version {decision['version']} did not pass its gates and no other encoder is champion, so nothing is indexed. "
            + WHAT_CAN_BE_DONE
        )

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
    states = {t.task: t.state for t in airflow.tasks("promote_index", promote)}
    if states["flip"] == "success":
        console.print(f"  {escape(airflow.result('promote_index', promote, 'flip')['summary'])}")
        return
    skipped = next((task for task in ("choose_slot", "approve") if states.get(task) in ("skipped", "success")), "flip")
    why = follower.reason("promote_index", promote, skipped)
    console.print(f"  the version that was live stays live: {escape(why)}")


def _tell_gates(decision: dict[str, Any], console: Console) -> None:
    """Prints the gates that an encoder version failed: value, threshold, and the version compared with."""
    rival = f"encoder version {decision['against']}, the champion" if decision["against"] else ""
    going_on = f"; {rival}, stays" if rival else ""
    console.print(
        f"  [red]encoder version {decision['version']} did not pass {len(decision['failed'])} of its gates[/]{going_on}"
    )
    for gate in decision["failed"]:
        console.print(f"    [red]✗[/] {gate['name']}: {escape(gate['reason'])}")


def _wait_for_dags(airflow: Airflow, console: Console) -> None:
    """Waits until Airflow has parsed the DAGs. Raises VitrineError with the last line of an import error."""
    end = time.monotonic() + PARSE_LIMIT_S
    with console.status("waiting for Airflow to read the DAGs"):
        while time.monotonic() < end:
            if set(DAGS) <= airflow.dags():
                return
            if errors := airflow.import_errors():
                raise VitrineError("Airflow cannot read a DAG: " + "; ".join(errors))
            time.sleep(1)
    raise VitrineError(f"Airflow did not read the DAGs within {PARSE_LIMIT_S:.0f} s; see {airflow.url}")
