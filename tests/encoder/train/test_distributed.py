"""Training with several processes: the same curve as with one, resumed after a kill, and one sentence when it cannot go on."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tasks.catalog.snapshot import Snapshot
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.presets import preset
from tasks.encoder.train.jobs import Job, train
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.tower_store import load_tower
from tasks.errors import TrainingError
from tasks.settings import PROJECT
from tests.running import until

LIMIT_S = 500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def recipe() -> EncoderConfig:
    """Towers without batch norms, whose statistics would be each process's own; an odd number of products to share."""
    tiny = preset("tiny")
    few = replace(tiny.teacher_recipe, products=5, accumulate=2, steps=6)
    tower = TowerConfig(timm="test_vit")
    return replace(tiny, preprocess=tiny.preprocess.model_copy(update={"size": 32}), teacher=tower, student=tower,
                   teacher_recipe=few, student_recipe=few)  # fmt: skip


def job(snapshot: Snapshot, work: Path, config: EncoderConfig, teacher: TrainedTower | None = None) -> Job:
    tower = "student" if teacher else "teacher"
    return Job(tower=tower, snapshot_uri=snapshot.uri, config=config.as_dict(), work=str(work), teacher=teacher)


def test_two_processes_train_as_one_with_the_same_batch(snapshot: Snapshot, tmp_path: Path) -> None:
    config, seen = recipe(), []
    alone = train(job(snapshot, tmp_path / "one", config), no_log, 1)
    together = train(job(snapshot, tmp_path / "two", config), lambda *told: seen.append(told), 2)
    one, two = load_tower(alone), load_tower(together)
    assert len(one.values["loss"]) == 6
    np.testing.assert_allclose(two.values["loss"], one.values["loss"], rtol=1e-4)
    assert [value for name, value, _ in seen if name == "teacher.loss"] == two.values["loss"]
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-2, atol=2e-4)


@pytest.mark.kill_drill
def test_two_processes_distil_as_one_with_the_same_batch(snapshot: Snapshot, tmp_path: Path) -> None:
    """The loop is the teacher's, whose processes are compared each time; it takes as long."""
    config = recipe()
    alone = train(job(snapshot, tmp_path / "one", config), no_log, 1)
    apart = train(job(snapshot, tmp_path / "one", config, alone), no_log, 1)
    shared = train(job(snapshot, tmp_path / "two", config, alone), no_log, 2)
    np.testing.assert_allclose(load_tower(shared).values["loss"], load_tower(apart).values["loss"], rtol=1e-4)


SLOWED = """
import sys, time
from pathlib import Path
from tasks.encoder.train.jobs import Job, train
train(Job.model_validate_json(Path(sys.argv[1]).read_text()), lambda *told: print(*told, flush=True), 2)
"""


@pytest.mark.kill_drill
def test_killed_together_they_leave_nothing_running_and_resume_to_the_same_curve(snapshot: Snapshot, tmp_path: Path) -> None:
    config = replace(recipe(), teacher_recipe=replace(recipe().teacher_recipe, steps=60, checkpoint_every=10))
    one = job(snapshot, tmp_path / "killed", config)
    (tmp_path / "job.json").write_text(one.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, str(tmp_path / "job.json")], env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE, cwd=PROJECT,
    )  # fmt: skip
    assert process.stdout is not None
    until(
        lambda: bool(list(tmp_path.glob("killed/teacher/*/steps/step-*/checkpoint.json"))) or process.poll() is not None,
        limit_s=LIMIT_S,
    )
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3, "torchrun and its two processes"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), limit_s=LIMIT_S)
    assert not list(tmp_path.glob("killed/teacher/*/checkpoint.json")), "it ended before it could be killed"
    steps: list[int] = []
    resumed = train(one, lambda name, _, step: steps.append(step) if name == "teacher.loss" else None, 2)
    assert steps[0] >= 10
    whole = train(one.model_copy(update={"work": str(tmp_path / "whole")}), no_log, 1)
    np.testing.assert_allclose(load_tower(resumed).values["loss"], load_tower(whole).values["loss"], rtol=2e-3)


def test_what_stops_one_stops_all_with_its_sentence(snapshot: Snapshot, tmp_path: Path) -> None:
    wild = replace(recipe(), teacher_recipe=replace(recipe().teacher_recipe, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"teacher: the loss is not a number at step \d .*lower the learning rate"):
        train(job(snapshot, tmp_path, wild), no_log, 2)
