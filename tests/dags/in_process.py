"""Runs DAGs in this process with `dag.test()`, one after the other; prints each run's states as JSON.

A run is a DAG, its conf, and optionally its type in Airflow's words (default: manual).

python -m tests.dags.in_process '[["promote_index", {"version": "2"}], ["rebuild_index", {}, "scheduled"]]'
"""

import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from tests.brief import measure_briefly


def read_dags_once() -> None:
    """Lets `dag.test()`, which reads every DAG file and writes all DAGs to the database before each run, do it before the first."""
    from airflow.dag_processing import dagbag

    dagbag.BundleDagBag = cache(dagbag.BundleDagBag)
    write, written = dagbag.sync_bag_to_db, set()

    def write_once(bag: Any, name: str, version: str | None) -> None:
        if name not in written:
            write(bag, name, version)
        written.add(name)

    dagbag.sync_bag_to_db = write_once


@contextmanager
def runs_of_type(kind: str) -> Iterator[None]:
    """Gives the runs that `dag.test()` makes this type: by itself it makes manual runs only."""
    from airflow.models import dagrun
    from airflow.utils.types import DagRunType

    make = dagrun.get_or_create_dagrun

    def make_typed(**arguments: Any) -> Any:
        made = make(**arguments)
        made.run_type = DagRunType(kind)
        arguments["session"].commit()
        return made

    dagrun.get_or_create_dagrun = make_typed
    try:
        yield
    finally:
        dagrun.get_or_create_dagrun = make


def run(name: str, conf: dict[str, Any], kind: str = "manual") -> dict[str, Any]:
    from airflow.models.dagrun import DagRun
    from airflow.sdk import DAG
    from airflow.utils.session import create_session

    module = importlib.import_module(f"dags.{name}")
    dag = next((v for v in vars(module).values() if isinstance(v, DAG)), None) or getattr(module, name)()
    with runs_of_type(kind):
        made = dag.test(run_conf=conf)
    tasks = made.get_task_instances()
    returned = {t.task_id: t.xcom_pull(task_ids=t.task_id, run_id=made.run_id) for t in tasks}
    with create_session() as session:
        note = session.get_one(DagRun, made.id).note
    return {
        "dag": name, "type": str(made.run_type), "state": str(made.state), "tasks": {t.task_id: str(t.state) for t in tasks}, "note": note,
        "summaries": {task: value["summary"] for task, value in returned.items() if isinstance(value, dict) and "summary" in value},
    }  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    measure_briefly(pytest.MonkeyPatch())
    read_dags_once()
    for wanted in json.loads(sys.argv[1]):
        print("RUN " + json.dumps(run(*wanted)), flush=True)
