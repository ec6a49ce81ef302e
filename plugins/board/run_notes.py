"""Writes the `note` that tasks return (dead letters, quarantine) as the note of their DAG run.

A task returns such a sentence as `note`; when the run ends, the notes of its tasks are written on the run, where Airflow shows them
in its list of runs and on the run's page. Called by the scheduler, in whose session the run is.
"""

from typing import Any

from airflow.listeners import hookimpl

from plugins.board.task_links import as_json

DAGS = ("refresh_index", "rebuild_index")
LONGEST = 1000
"""Airflow's own limit of a note, in characters."""


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Writes the notes of a successful run; even then all its changes may be dead letters."""
    write_note(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Writes the notes of the tasks that finished before the failure."""
    write_note(dag_run)


def write_note(dag_run: Any) -> None:
    """Appends the tasks' notes to the run's note. Idempotent."""
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
    before = dag_run.note or ""
    new = [note for note in dict.fromkeys(_notes(session, dag_run)) if note not in before]
    if new:
        dag_run.note = "\n".join([before, *new] if before else new)[:LONGEST]


def _notes(session: Any, dag_run: Any) -> list[str]:
    """The `note` of each task result of a run, in order of time."""
    from airflow.models.xcom import XComModel

    query = XComModel.get_many(key="return_value", run_id=dag_run.run_id, dag_ids=dag_run.dag_id)
    found = session.execute(query.with_only_columns(XComModel.value, XComModel.timestamp)).all()
    results = [as_json(row.value) for row in sorted(found, key=lambda row: row.timestamp)]
    return [r["note"] for r in results if isinstance(r, dict) and isinstance(r.get("note"), str) and r["note"]]
