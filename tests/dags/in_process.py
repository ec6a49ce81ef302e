"""Runs DAGs in this process with `dag.test()`, one after the other; prints each run's states as JSON.

python -m tests.dags.in_process '[["promote_index", {"version": "2"}], ["rollback_index", {}]]'
"""

import importlib
import json
import sys
import warnings
from typing import Any


def run(name: str, conf: dict[str, Any]) -> dict[str, Any]:
    from airflow.sdk import DAG

    module = importlib.import_module(f"dags.{name}")
    dag = next((v for v in vars(module).values() if isinstance(v, DAG)), None) or getattr(module, name)()
    dag.deadline = None  # Airflow 3.3's dag.test() cannot keep deadlines: it passes the alert's record where its id belongs
    made = dag.test(run_conf=conf)
    tasks = made.get_task_instances()
    return {"dag": name, "state": str(made.state), "tasks": {t.task_id: str(t.state) for t in tasks}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, conf in json.loads(sys.argv[1]):
        print("RUN " + json.dumps(run(name, conf)), flush=True)
