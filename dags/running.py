"""Shared by all DAGs: default arguments, the run key, tasks that call a step of tasks.pipelines, and the mapping of errors to states."""

import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec

from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags.alerts import alert_failure
from dags.credentials import mask_secrets, read_connections
from dags.placement import placed
from dags.process import end_with_supervisor

P = ParamSpec("P")

DEFAULTS: dict[str, Any] = {
    "owner": "vitrine",
    "retries": 1,
    "retry_delay": timedelta(seconds=20),
    "execution_timeout": timedelta(hours=6),
    "on_failure_callback": alert_failure,
    **placed("small"),
}


def run_key() -> str:
    """The key of this DAG run in paths and MLflow, equal in all tasks and retries of the run."""
    run = get_current_context()["dag_run"]
    return f"{run.dag_id}." + re.sub(r"[^A-Za-z0-9]+", "-", run.run_id).strip("-")


def step(name: str, operator: Any = task, kind: str = "small", **options: Any) -> Any:
    """A task that calls a function of tasks.pipelines, named "<module>.<function>"; it is imported when the task runs.

    The task takes keyword arguments: what other tasks returned, by the names of the function's parameters. Each becomes the record
    that the parameter's annotation names, and the record that the function returns becomes the task's XCom (tasks/records.py). A
    parameter `run_key` gets the key of the run. `kind` says what machine it needs (dags/placement.py). `options` are those of Airflow's
    @task; the task's id is the function's name.
    """
    module, _, function = name.rpartition(".")

    @fail_without_retry
    def run(**arguments: Any) -> Any:
        from tasks.records import call_step

        called = getattr(import_module(f"tasks.pipelines.{module}"), function)
        return call_step(called, arguments | {"run_key": run_key()})

    run.__doc__ = f"Calls `tasks.pipelines.{name}`."  # Airflow shows it on the task's page
    return operator(**{"task_id": function} | placed(kind) | options)(run)


def fail_without_retry(function: Callable[P, Any]) -> Callable[P, Any]:
    """Decorator of a task: errors that need a person (VitrineError, ContractError) fail it without retries; others keep them, and so
    does a service that does not answer (ServiceAway).

    A record that it returns becomes JSON. A scheduled run that lacks its inputs before the first success is skipped
    (tasks/pipelines/first_run.py).
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        from serving.contract.files import ContractError
        from tasks.errors import InputMissing, ServiceAway, VitrineError
        from tasks.masking import public_text
        from tasks.records import to_json
        from tasks.settings import Settings

        end_with_supervisor()
        read_connections()
        mask_secrets()
        try:
            return to_json(function(*args, **kwargs))
        except (VitrineError, ContractError) as error:
            context = get_current_context()
            if isinstance(error, InputMissing):
                _skip_before_first_success(context, error)
            if links := getattr(error, "links", None):  # the buttons of a task show what it returned, also when it failed
                context["ti"].xcom_push("return_value", {"links": links})
            failure = AirflowException if isinstance(error, ServiceAway) else AirflowFailException
            raise failure(public_text(str(error), Settings.load())) from error

    return run


def _skip_before_first_success(context: Any, error: Any) -> None:
    from tasks.pipelines import first_run

    run = context["dag_run"]
    if reason := first_run.skip_reason(run.dag_id, run.run_type, error):
        context["ti"].xcom_push("return_value", {"summary": reason})
        raise AirflowSkipException(reason) from error
