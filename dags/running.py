"""What every DAG shares: defaults, the key of a run, and how a step's failure is told to Airflow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.alerts import tell_failure

DEFAULTS: dict[str, Any] = {
    "owner": "vitrine",
    "retries": 1,
    "retry_delay": timedelta(seconds=20),
    "execution_timeout": timedelta(hours=6),
    "on_failure_callback": tell_failure,
}


def run_key() -> str:
    """Names this DAG run in paths and in MLflow: the same in every task and every retry of the run."""
    run = get_current_context()["dag_run"]
    return f"{run.dag_id}." + re.sub(r"[^A-Za-z0-9]+", "-", run.run_id).strip("-")


@contextmanager
def clear_failure() -> Iterator[None]:
    """Turns an error that a person must mend into a failure without retries; anything else keeps its retries.

    A scheduled run that lacks its inputs before the first success is skipped (tasks/pipelines/first_run.py).
    """
    from serving.contract.files import ContractError
    from tasks.errors import InputMissing, VitrineError

    try:
        yield
    except (VitrineError, ContractError) as error:
        context = get_current_context()
        if isinstance(error, InputMissing):
            _skip_before_first_success(context, error)
        if links := getattr(error, "links", None):  # the buttons of a task show what it returned, also when it failed
            context["ti"].xcom_push("return_value", {"links": links})
        raise AirflowFailException(str(error)) from error


def _skip_before_first_success(context: Any, error: Any) -> None:
    from tasks.pipelines import first_run

    run = context["dag_run"]
    if reason := first_run.skip_reason(run.dag_id, run.run_type, error):
        context["ti"].xcom_push("return_value", {"summary": reason})
        raise AirflowSkipException(reason) from error
