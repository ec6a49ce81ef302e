"""The GPU check on the CPU with a small model: what it measures, and that a part that crashes or hangs costs the others nothing."""

import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_models
from tests.benchmarks.gpu_check import BUDGET_S, TOTAL_S, carry, lines, run_part
from tests.benchmarks.gpu_parts import PARTS, Bench, NotRun

POSITIVE = {
    "training": "steps_per_s",
    "embedding": "pictures_per_s",
    "latency": "queries_per_s",
    "onnxruntime": "pictures_per_s",
    "faiss": "queries_per_s",
}


@pytest.mark.parametrize("part", POSITIVE)
def test_a_part_measures_on_the_cpu_with_a_small_model(part: str) -> None:
    rows = list(PARTS[part](Bench(tiny=True)))
    figures = [row[POSITIVE[part]] for row in rows]
    assert [f for f in figures if isinstance(f, float) and f > 0]
    assert [f for f in figures if isinstance(f, str)] == (["not run: no CUDA device"] if part == "embedding" else [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_reason_is_said() -> None:
    with pytest.raises(NotRun, match="torch sees no CUDA device; --tiny"):
        Bench()
    with pytest.raises(NotRun, match=r"Spark hands out GPUs|no java"):
        list(PARTS["spark"](Bench(tiny=True)))


@pytest.mark.parametrize(
    ("code", "budget_s", "told"),
    [
        ("print('{\"steps_per_s\": 2.0}')", 30, ["steps_per_s 2"]),
        ("print('{\"a\": 1}', flush=True); import time; time.sleep(60)", 1, ["a 1", "stopped: its 1 s were over"]),
        ("print('{\"a\": 1}', flush=True); raise SystemExit('CUDA is gone')", 30, ["a 1", "stopped: CUDA is gone"]),
        ("raise SystemExit('no such module')", 30, ["not run: no such module"]),
        ('print(\'{"not_run": "there is no java"}\')', 30, ["not run: there is no java"]),
        ("pass", 0, ["not run: the time for all parts is up"]),
    ],
)
def test_a_part_that_fails_keeps_its_rows_and_says_why(code: str, budget_s: float, told: list[str]) -> None:
    assert lines(run_part([sys.executable, "-c", code], budget_s)) == told


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(BUDGET_S.values()) <= TOTAL_S == 480
    assert set(BUDGET_S) == set(PARTS)


def test_open_clip_is_carried_along(tmp_path: Path) -> None:
    assert "open_clip" in carry(tmp_path)
    assert (tmp_path / "open_clip" / "model_configs" / "ViT-B-16.json").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_missing_open_clip_is_replaced_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "import_open_clip", lambda: None)
    model = gpu_models.Model("a small one", "ViT-B-32", "test_vit", 160)
    encoder, maker = gpu_models.build(model, "cpu")
    vectors = encoder(torch.zeros((2, 160, 160, 3), dtype=torch.uint8))
    assert maker == "timm"
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
