"""The questions to a person: they wait on without a process, and end by themselves when a newer candidate or champion is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tasks.settings import PROJECT

CODE = """
import json, warnings
warnings.simplefilter("ignore")
from datetime import timedelta
from airflow.sdk import timezone
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.exceptions import AirflowFailException
from dags import promote_index as dag_file, rebuild_index as rebuild_file
from dags.superseded_approval import LOOKS_EVERY
from tasks.pipelines import plan_reembedding, promote_index

TIMEOUT = {"error": "nobody answered", "error_type": "timeout"}
ANSWER = {"chosen_options": ["Approve"], "params_input": {}, "responded_at": timezone.utcnow(), "responded_by_user": None}

class Instance:
    def xcom_push(self, key, value):
        self.told = value

    def xcom_pull(self, task_ids):
        return {"choose_slot": {"version": "4"}, "choose_encoder": {"version": "7"}}[task_ids]

promote = dag_file.promote_index().get_task("approve")
embed = rebuild_file.rebuild_index().get_task("approve_embedding")

def outcome(replaced, version=None, left=timedelta(days=1), event=TIMEOUT, task=promote):
    def look(asked):
        assert asked == ("4" if task is promote else "7")
        if isinstance(replaced, Exception):
            raise replaced
        return replaced
    promote_index.replaced_while_waiting = plan_reembedding.replaced_while_waiting = look
    skipped = []
    task.skip = lambda ti, tasks: skipped.extend(t.task_id for t in tasks)
    instance = Instance()
    context = {"ti": instance, "task": task, "params": {"version": version}}
    try:
        told = task.execute_complete(context, dict(event), until=(timezone.utcnow() + left).isoformat())
    except TaskAwaitingInput as waits:
        assert waits.method_name == "execute_complete" and set(waits.kwargs) == {"until"}
        return ["waits", waits.timeout <= min(left, LOOKS_EVERY)]
    except AirflowFailException:
        return ["failed"]
    told = told or instance.told
    return ["ended", told.get("note", told.get("chosen_options")), skipped]

print(json.dumps({
    "nothing new": outcome(""),
    "a newer one": outcome("superseded by 5"),
    "chosen by hand": outcome("superseded by 5", version="4"),
    "registry away": outcome(OSError("away")),
    "too late": outcome("", left=timedelta(seconds=-1)),
    "answered before": outcome("superseded by 5", event=ANSWER),
    "embedding, nothing new": outcome("", task=embed),
    "embedding, another champion": outcome("8 is champion", task=embed),
}))
"""


def test_a_question_waits_on_until_it_is_answered_superseded_or_three_days_old(tmp_path: Path) -> None:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False, env=environment, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {
        "nothing new": ["waits", True],
        "a newer one": ["ended", "superseded by 5", ["flip"]],
        "chosen by hand": ["waits", True],
        "registry away": ["waits", True],
        "too late": ["failed"],
        "answered before": ["ended", ["Approve"], []],
        "embedding, nothing new": ["waits", True],
        "embedding, another champion": ["ended", "8 is champion", ["agreed"]],
    }
