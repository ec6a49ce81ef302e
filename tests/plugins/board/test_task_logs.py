"""Task logs: the log of a real failing task, as Airflow's own logging writes it in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.settings import PROJECT

pytestmark = pytest.mark.slow

CODE = """
import logging, sys
from types import SimpleNamespace
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.log import configure_logging
configure_logging(json_output=True, output=sys.stdout.buffer, log_level=sys.argv[1])
import structlog
from plugins.board import task_logs
log = structlog.get_logger(logger_name="task")
log.info("begins")
kept = {}
task = SimpleNamespace(dag_id=sys.argv[2], xcom_push=kept.__setitem__)
task_logs.on_task_instance_running(None, task)
task_logs.on_task_instance_running(None, task)
logging.getLogger("faiss.loader").info("Could not load library due to: ModuleNotFoundError()")
logging.getLogger("great_expectations._docs_decorators").info("Skipping registering function")
logging.getLogger("tasks.index").info("ours")
for error in (AirflowFailException("2 photos are held out"), AirflowException("Redis is away"), ValueError("a bug")):
    try:
        raise error
    except Exception as raised:
        log.exception("Task failed with exception")
        task_logs.on_task_instance_failed(None, task, raised)
        log.info("", kept=kept)
"""


def logged(home: Path, level: str = "INFO", dag: str = "rebuild_index") -> list[dict]:
    environment = os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, level, dag],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_clear_error_is_its_sentence_a_bug_keeps_its_traceback_and_libraries_are_quiet(tmp_path: Path) -> None:
    lines = logged(tmp_path)
    events = [line["event"] for line in lines]
    assert events == [
        "begins",
        "ours",
        "Task failed: 2 photos are held out",
        "",
        "Task failed: Redis is away",
        "",
        "Task failed with exception",
        "",
    ]
    clear, bug = lines[2], lines[6]
    assert (clear["level"], "exception" in clear) == ("error", False)
    assert (bug["exception"][0]["exc_type"], bool(bug["exception"][0]["frames"])) == ("ValueError", True)


def test_the_error_is_kept_as_one_sentence_for_the_runs_note(tmp_path: Path) -> None:
    kept = [line["kept"]["error"]["sentence"] for line in logged(tmp_path) if "kept" in line]
    assert kept == ["2 photos are held out", "Redis is away", "ValueError: a bug"]


def test_at_debug_level_nothing_is_left_out(tmp_path: Path) -> None:
    failed = next(line for line in logged(tmp_path, "DEBUG") if line["event"].startswith("Task failed"))
    assert failed["exception"][0]["exc_type"] == "AirflowFailException"


@pytest.mark.parametrize("dag", ["somebody_elses"])
def test_the_logs_of_other_peoples_dags_are_left_as_they_are(tmp_path: Path, dag: str) -> None:
    lines = logged(tmp_path, dag=dag)
    assert "Skipping registering function" in [line["event"] for line in lines]
    assert (
        next(line for line in lines if line["event"].startswith("Task failed"))["exception"][0]["exc_type"]
        == "AirflowFailException"
    )
    assert not any(line.get("kept") for line in lines)
