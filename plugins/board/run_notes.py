"""Writes the note of a DAG run when it ends: why its tasks failed, and the `note` that tasks returned (dead letters, quarantine).

Airflow shows it in its list of runs and on the run's page, the board beside the run. Called by the scheduler, in whose session the
run is.
"""

from typing import Any

from airflow.listeners import hookimpl

from plugins.board.dags import DAGS
from plugins.board.task_links import as_json
from plugins.board.task_logs import ERROR

LONGEST = 1000
"""Airflow's own limit of a note, in characters."""
WITHOUT_WORDS = "it ended without an error message, as a killed process does; its log says more"


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Writes the notes of a successful run; even then all its changes may be dead letters."""
    write_note(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Writes why the run failed, and the notes of the tasks that finished before."""
    write_note(dag_run)


def write_note(dag_run: Any) -> None:
    """Writes failures and tasks' notes into the run's note, beside what a person wrote there. Idempotent."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy.orm import object_session

    if dag_run.dag_id not in DAGS:
        return
    session = object_session(dag_run)
    if session is not None:  # the scheduler's: another one would wait for it
        _write(session, dag_run)
        return
    with create_session() as own:
        _write(own, own.get_one(DagRun, dag_run.id))


def _write(session: Any, dag_run: Any) -> None:
    tasks = dag_run.get_task_instances(session=session)
    # What an earlier end of the same run wrote goes: a run that was cleared and succeeded has no failure left to tell of.
    starts = tuple(f"{t.task_id} failed: " for t in tasks)
    kept = [line for line in (dag_run.note or "").splitlines() if not line.startswith(starts)]
    found = [*_failures(session, dag_run, tasks), *_notes(session, dag_run)]
    note = "\n".join([*kept, *(line for line in dict.fromkeys(found) if line not in "\n".join(kept))])[:LONGEST]
    if note != (dag_run.note or ""):
        dag_run.note = note


def _failures(session: Any, dag_run: Any, tasks: list[Any]) -> list[str]:
    """One line per failed task with an error, in order of time; of those without words (killed, or failed by hand) the first alone."""
    errors = {task: value["sentence"] for task, value in _results(session, dag_run, ERROR) if isinstance(value, dict)}
    failed = sorted((t for t in tasks if str(t.state) == "failed"), key=lambda t: str(t.end_date))
    names = list(dict.fromkeys(t.task_id for t in failed))
    silent = [name for name in names if name not in errors]
    more = f"; {len(silent) - 1} more tasks failed likewise" if len(silent) > 1 else ""
    return [f"{name} failed: {errors[name]}" for name in names if name in errors] + [
        f"{name} failed: {WITHOUT_WORDS}{more}" for name in silent[:1]
    ]


def _notes(session: Any, dag_run: Any) -> list[str]:
    """The `note` of each task result of a run, in order of time."""
    results = [value for _, value in _results(session, dag_run, "return_value")]
    return [r["note"] for r in results if isinstance(r, dict) and isinstance(r.get("note"), str) and r["note"]]


def _results(session: Any, dag_run: Any, key: str) -> list[tuple[str, Any]]:
    """(task id, value) of the XComs of this key, in order of time."""
    from airflow.models.xcom import XComModel

    query = XComModel.get_many(key=key, run_id=dag_run.run_id, dag_ids=dag_run.dag_id)
    found = session.execute(query.with_only_columns(XComModel.task_id, XComModel.value, XComModel.timestamp)).all()
    return [(row.task_id, as_json(row.value)) for row in sorted(found, key=lambda row: row.timestamp)]
