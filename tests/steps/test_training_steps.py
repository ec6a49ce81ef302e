"""The steps of train_encoder over a real MLflow server, on a drawn catalogue, with the tiniest preset."""

from pathlib import Path

import pytest

from tasks.catalog.sample import SampleConfig, draw_sample
from tasks.registry import ENCODER_MODEL

pytestmark = pytest.mark.slow


def test_an_encoder_is_trained_judged_by_its_gates_and_not_trained_again(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.steps import common, training

    draw_sample(SampleConfig(products=36, photos_per_product=2), tmp_path / "shop")
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VITRINE_CATALOG", str(tmp_path / "shop"))
    monkeypatch.setenv("VITRINE_MLFLOW_URI", mlflow_uri)
    snapshot = common.snapshot("run-1")
    plan = training.plan(snapshot, "tiny", False, "run-1")
    assert plan["existing"] == ""
    teacher = training.teacher(snapshot, plan, "run-1")
    student = training.student(snapshot, plan, teacher, "run-1")
    version = training.export(snapshot, plan, teacher, student, "run-1")
    assert training.export(snapshot, plan, teacher, student, "run-1") == version
    decision = training.judge(snapshot, version, "run-1")
    registry = common.registry()
    assert registry.require_alias(ENCODER_MODEL, "challenger").version == version
    verdict = registry.version(ENCODER_MODEL, version).tags["verdict"]
    assert decision["promote"] is (verdict == "passed")
    assert f"encoder version {version}" in decision["summary"]
    assert training.plan(common.snapshot("run-2"), "tiny", False, "run-2")["existing"] == version
    registry.set_alias(ENCODER_MODEL, "champion", version)
    assert training.judge(snapshot, version, "run-2")["promote"] is False
