"""Task logs that people can read: no chatter of libraries, and no traceback for an error that is one sentence.

Airflow calls these hooks in the process of each task: before it runs, and when it has failed.
"""

import logging
import os
from typing import Any

from airflow.listeners import hookimpl

from plugins.board.dags import DAGS

ERROR = "error"
"""The XCom that holds the error of a failed task (plugins/board/run_notes.py)."""
LONGEST = 600
"""Of an error that is kept, in characters: a list of everything that is wrong with a catalogue may be long."""
CHATTY = (
    "alembic", "botocore", "faiss.loader", "fontTools", "great_expectations", "matplotlib", "mlflow", "onnxscript", "PIL", "py4j",
    "pyspark", "torch", "urllib3",
)  # fmt: skip
"""Libraries that report every step of theirs at INFO: a ModuleNotFoundError that FAISS recovers from, 214 functions that Great
Expectations does not register. Their warnings and errors are shown."""


@hookimpl
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    """Prepares this process's logging, once per task."""
    if task_instance.dag_id not in DAGS:
        return
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow writes its log to stderr by itself, which Airflow shows as errors; told not to, it uses the log of the task.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    _add_processor()


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """Keeps the error as one sentence for the run's note."""
    if task_instance.dag_id in DAGS and isinstance(error, BaseException):
        task_instance.xcom_push(ERROR, {"sentence": describe(error)})


def describe(error: BaseException) -> str:
    """An error as one sentence: our own as it is, any other with its class, which is a bug or something that is away."""
    text = " ".join(str(error).split())
    if not is_sentence(error):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def is_sentence(error: BaseException | None) -> bool:
    """Whether dags/running.py raised it: the sentence of a deliberate error, with which the task fails for good or is tried again."""
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    return isinstance(error, AirflowFailException) or type(error) is AirflowException


def leave_out_traceback(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """A structlog processor: a deliberate failure is logged as its sentence.

    Its frames are Airflow's and one `raise`; at logging level DEBUG they stay. Errors that nobody foresaw keep theirs.
    """
    import sys

    if not event.get("exc_info") or logging.getLogger("airflow").isEnabledFor(logging.DEBUG):
        return event
    error = event["exc_info"] if isinstance(event["exc_info"], BaseException) else sys.exc_info()[1]
    if is_sentence(error):
        return {name: value for name, value in event.items() if name != "exc_info"} | {"event": f"Task failed: {error}"}
    return event


def _add_processor() -> None:
    """Into the list that structlog's loggers already hold: they keep the one they were made with. Idempotent."""
    import structlog

    processors = structlog.get_config()["processors"]
    if isinstance(processors, list) and leave_out_traceback not in processors:
        processors.insert(0, leave_out_traceback)
