"""Runs rebuild_index in this process with its steps replaced by their records: what is left are Airflow's rules.

A case: `ask`, whether the plan needs approval, `answer`, a person's; `skip`, a step whose input is missing; `changed` (default true).

python -m tests.dags.without_steps '[{"ask": true, "answer": "Reject"}]'
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

from tests.dags.in_process import read_dags_once

RECORDS: dict[str, Any] = {"list_shards": [0], "catch_up": {"version": "1", "passed": True}}


def run_without_steps(dag: Any, case: dict[str, Any]) -> dict[str, str]:
    """The state of each task at the end of a run of this case."""
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import AirflowSkipException

    from tasks import records

    def call_step(function: Callable[..., Any], arguments: object) -> Any:
        name = function.__name__
        if name == case.get("skip"):
            raise AirflowSkipException("an input is missing")
        plan = {"needs_approval": case.get("ask", False), "summary": "dear", "text": "very dear"}
        own = {"something_changed": case.get("changed", True), "plan_reembedding": plan}
        return (RECORDS | own).get(name, {})

    vars(records)["call_step"] = call_step
    answered = {"chosen_options": [case.get("answer", "")]}
    operator: Any = hitl.ApprovalOperator
    waiting: Any = hitl.HITLOperator
    operator.execute = lambda self, context: self.execute_complete(context, answered)
    waiting.execute_complete = lambda self, context, event: event
    made = dag.test()
    return {t.task_id: str(t.state) for t in made.get_task_instances()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    read_dags_once()
    from dags.rebuild_index import rebuild_index
    from tasks.pipelines import register_index

    vars(register_index)["publish"] = lambda version: None
    made_dag = rebuild_index()
    for wanted in json.loads(sys.argv[1]):
        print("RUN " + json.dumps(run_without_steps(made_dag, wanted)), flush=True)
