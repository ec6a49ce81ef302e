"""Queues, pools and pod templates of tasks are those that settings name for their kind; nothing is named by default."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dags import placement
from tasks.errors import SettingsError
from tasks.settings import PROJECT

CODE = """
import importlib, json
from airflow.sdk import DAG
found = {}
for name in ("train_encoder", "rebuild_index", "refresh_index"):
    dag = getattr(importlib.import_module(f"dags.{name}"), name)()
    found |= {t.task_id: [t.queue, t.pool, t.executor_config] for t in dag.tasks}
print(json.dumps(found))
"""


def test_a_kind_that_no_setting_names_is_left_to_airflow() -> None:
    assert {kind: placement.placed(kind) for kind in placement.KINDS} == {kind: {} for kind in placement.KINDS}


def test_a_name_without_a_kind_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_POOLS", "gpu=gpus,huge=big")
    with pytest.raises(
        SettingsError, match=r"VITRINE_POOLS: 'huge=big' is not <kind>=<name> with a kind of small, large, spark, gpu"
    ):
        placement.placed("gpu")


def test_each_task_goes_where_its_kind_is_sent(tmp_path: Path) -> None:
    named = {
        "VITRINE_QUEUES": "gpu=q-gpu,spark=q-spark,small=q-small", "VITRINE_POOLS": "spark=sparks,small=smalls",
        "VITRINE_POD_TEMPLATES": "gpu=/pods/gpu.yaml,small=/pods/small.yaml", "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, env=os.environ | named, cwd=PROJECT, capture_output=True, text=True, check=True)
    tasks = json.loads(done.stdout.strip().splitlines()[-1])
    assert tasks["train_teacher"] == ["q-gpu", "default_pool", {"pod_template_file": "/pods/gpu.yaml"}]
    assert tasks["embed"] == tasks["embed_changes"] == ["q-spark", "sparks", {}]
    assert [tasks[t] for t in ("build_shard", "tune", "register_version", "judge")] == 4 * [["default", "default_pool", {}]]
    assert {tasks[t][0] for t in ("take_snapshot", "drain_changes", "publish_candidate", "train_or_reuse")} == {"q-small"}
