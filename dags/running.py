"""Shared by all DAGs: default arguments, the run key, and the mapping of errors to Airflow states."""

import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.alerts import alert_failure

P = ParamSpec("P")
R = TypeVar("R")

DEFAULTS: dict[str, Any] = {
    "owner": "vitrine",
    "retries": 1,
    "retry_delay": timedelta(seconds=20),
    "execution_timeout": timedelta(hours=6),
    "on_failure_callback": alert_failure,
}


def run_key() -> str:
    """The key of this DAG run in paths and MLflow, equal in all tasks and retries of the run."""
    run = get_current_context()["dag_run"]
    return f"{run.dag_id}." + re.sub(r"[^A-Za-z0-9]+", "-", run.run_id).strip("-")


def fail_without_retry(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a task: errors that need a person (VitrineError, ContractError) fail it without retries; others keep them.

    A scheduled run that lacks its inputs before the first success is skipped (tasks/pipelines/first_run.py).
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from serving.contract.files import ContractError
        from tasks.errors import InputMissing, VitrineError
        from tasks.settings import Settings, public_text

        _mask_secrets()
        try:
            return function(*args, **kwargs)
        except (VitrineError, ContractError) as error:
            context = get_current_context()
            if isinstance(error, InputMissing):
                _skip_before_first_success(context, error)
            if links := getattr(error, "links", None):  # the buttons of a task show what it returned, also when it failed
                context["ti"].xcom_push("return_value", {"links": links})
            raise AirflowFailException(public_text(str(error), Settings.load())) from error

    return run


def _mask_secrets() -> None:
    """Registers the secrets of the settings with Airflow, which masks them in the task's log, also in tracebacks."""
    from airflow.sdk.log import mask_secret

    from tasks.settings import Settings, secret_values

    for secret in secret_values(Settings.load()):
        mask_secret(secret)


def _skip_before_first_success(context: Any, error: Any) -> None:
    from tasks.pipelines import first_run

    run = context["dag_run"]
    if reason := first_run.skip_reason(run.dag_id, run.run_type, error):
        context["ti"].xcom_push("return_value", {"summary": reason})
        raise AirflowSkipException(reason) from error
