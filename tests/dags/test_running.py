"""Which errors end a task, and which are tried again."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tasks.settings import PROJECT

CODE = """
import json, warnings
warnings.simplefilter("ignore")
from dags import running
from serving.contract.files import ContractError
from tasks.errors import CatalogAway, CatalogError, ServiceAway

running.end_with_supervisor = running.read_connections = running.mask_secrets = lambda: None
running.get_current_context = dict

def outcome(error):
    def step():
        raise error
    try:
        running.fail_without_retry(step)()
    except Exception as raised:
        return [type(raised).__name__, str(raised)]

errors = [CatalogError("no title"), ContractError("a checksum")]
errors += [CatalogAway("PostgreSQL is away"), ServiceAway("Redis is away"), OSError("reset")]
print(json.dumps([outcome(error) for error in errors]))
"""


def test_what_needs_a_person_ends_a_task_and_a_service_that_is_away_is_asked_again(tmp_path: Path) -> None:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [
        ["AirflowFailException", "no title"], ["AirflowFailException", "a checksum"], ["AirflowException", "PostgreSQL is away"],
        ["AirflowException", "Redis is away"], ["OSError", "reset"],
    ]  # fmt: skip
