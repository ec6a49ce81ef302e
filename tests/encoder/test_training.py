"""Training: the same curve whether or not it was killed, and one sentence when it cannot go on."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.catalog.snapshot import Snapshot
from tasks.encoder.config import EncoderConfig, Recipe
from tasks.encoder.presets import preset
from tasks.encoder.train.checkpoint import latest
from tasks.encoder.train.loop import learning_rate, no_log, optimise
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import load_tower, recipe_key
from tasks.errors import TrainingError
from tests.encoder.conftest import Exported

pytestmark = pytest.mark.slow

STAYS = """
import sys, time
from pathlib import Path
from tasks.encoder.presets import preset
from tasks.encoder.train.teacher import train_teacher
work = Path(sys.argv[2])
def stay(name, value, step):
    if list(work.glob("teacher/*/steps/step-*/checkpoint.json")):
        time.sleep(600)
train_teacher(sys.argv[1], preset("tiny"), work, stay)
"""


def test_the_rate_rises_then_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0)
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.001


def test_a_training_killed_in_the_middle_ends_with_the_same_curve_and_weights(
    snapshot: Snapshot, exported: Exported, tmp_path: Path
) -> None:
    environ = dict(os.environ, PYTHONPATH=".", OMP_NUM_THREADS="1")
    process = subprocess.Popen([sys.executable, "-c", STAYS, snapshot.uri, str(tmp_path)], env=environ)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("teacher/*/steps/step-*/checkpoint.json")):
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.glob("teacher/*/checkpoint.json"))
    seen: list[int] = []
    resumed = train_teacher(
        snapshot.uri, exported.config, tmp_path, lambda name, _, step: seen.append(step) if name == "teacher.loss" else None
    )
    assert seen[0] >= 2
    once, twice = load_tower(exported.teacher), load_tower(resumed)
    assert twice.values["loss"] == once.values["loss"]
    assert all(torch.equal(twice.tensors[k], v) for k, v in once.tensors.items())


def test_bf16_is_for_processors_that_compute_in_it(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(preset("tiny"), precision="bf16", teacher_recipe=Recipe(steps=1, products=4, pictures=3))
    losses = []
    for found, expected in (({"avx512_bf16": False}, "fp32"), ({"avx512_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        trained = train_teacher(snapshot.uri, config, tmp_path / expected, no_log)
        assert trained.precision == expected
        losses.append(trained.final_loss)
    assert losses[0] != losses[1]


def test_a_finished_training_is_not_repeated_and_another_recipe_is_another_training(
    snapshot: Snapshot, exported: Exported
) -> None:
    def must_not_be_called(name: str, value: float, step: int) -> None:
        raise AssertionError("it trained again")

    assert train_teacher(snapshot.uri, exported.config, exported.work, must_not_be_called) == exported.teacher
    again = distil_student(snapshot.uri, exported.teacher, exported.config, exported.work, must_not_be_called)
    assert again == exported.student
    sha = snapshot.content_sha256
    assert recipe_key(exported.config, sha) == recipe_key(preset("tiny"), sha)
    others = (replace(exported.config, seed=8), replace(exported.config, alpha=0.5), preset("demo"))
    assert len({recipe_key(c, sha) for c in (exported.config, *others)} | {recipe_key(exported.config, "0" * 64)}) == 5


def test_a_loss_that_is_not_a_number_stops_the_training_and_says_where(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)

    def losses(step: int) -> dict[str, torch.Tensor]:
        bad = float("nan") if step == 2 else 1.0
        return {"loss": (module(torch.ones(1, 2)) * bad).sum()}

    with pytest.raises(TrainingError, match=r"teacher: the loss is not a number at step 2 .*lower the learning rate"):
        optimise("teacher", module, losses, Recipe(steps=5, checkpoint_every=1), "key", 1, tmp_path, no_log)
    found = latest(str(tmp_path))
    assert found is not None
    assert all(torch.isfinite(v).all() for v in found.tensors.values())


def test_accumulated_batches_give_the_step_of_one_large_batch(tmp_path: Path) -> None:
    xs = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))

    def trained(parts: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        size = 8 // parts
        recipe = Recipe(steps=1, accumulate=parts)
        optimise("x", module, lambda n: {"loss": module(xs[n * size : (n + 1) * size]).mean()}, recipe, "k", 8, tmp_path, no_log)
        return module.weight.detach()

    torch.testing.assert_close(trained(4), trained(1))


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    def trained(decay: float) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        before = module.weight.detach().clone()
        recipe = Recipe(steps=30, ema_decay=decay, learning_rate=0.1, checkpoint_every=1000)
        optimise("x", module, lambda _: {"loss": module(torch.ones(1, 2)).sum()}, recipe, "k", 1, tmp_path, no_log)
        return (module.weight.detach() - before).norm()

    assert 0 < trained(0.999) < trained(0.0)


def test_a_damaged_tower_is_not_used(snapshot: Snapshot, exported: Exported, tmp_path: Path) -> None:
    trained = train_teacher(snapshot.uri, exported.config, tmp_path, no_log)
    weights = Path(trained.uri) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(TrainingError, match="is damaged"):
        distil_student(snapshot.uri, trained, exported.config, tmp_path, no_log)
    gone = replace(trained, uri=str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match=r"is not in .*; run its training step again"):
        distil_student(snapshot.uri, gone, exported.config, tmp_path, no_log)


def test_presets_are_named_and_survive_their_dict() -> None:
    for name in ("demo", "tiny", "vit_b16", "vit_b32", "resnet50_student"):
        config = preset(name)
        assert config.name == name
        assert EncoderConfig.from_dict(config.as_dict() | {"data_sha256": "…"}) == config
    with pytest.raises(TrainingError, match="there is no encoder preset 'vit_b17'; choose one of demo"):
        preset("vit_b17")
