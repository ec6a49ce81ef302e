"""What the board says of an embedding run, from the tags and metrics of its MLflow run."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks.board.embedding import embedding_entry
from tasks.registry import Registry
from tasks.registry.runs import MeasuredRun


def entry(to_embed: int, needs_approval: bool, **metrics: float) -> dict[str, Any]:
    plan = f'{{"to_embed": {to_embed}, "needs_approval": {str(needs_approval).lower()}}}'
    found = MeasuredRun("r1", "rebuild_index.night", 0.0, {f"embed.{k}": v for k, v in metrics.items()}, {"embed.plan": plan})
    registry = SimpleNamespace(newest_measured=lambda *args, **options: found, run_url=lambda run: f"http://mlflow/{run}")
    return embedding_entry(cast(Registry, registry))


@pytest.mark.parametrize(
    ("to_embed", "needs_approval", "metrics", "state", "left_s"),
    [
        (0, False, {}, "done", 0.0),
        (100, False, {}, "planned", 0.0),
        (100, True, {}, "asking", 0.0),
        (100, True, {"progress.done": 0.0, "progress.elapsed_s": 1.0}, "embedding", 0.0),
        (100, True, {"progress.done": 25.0, "progress.elapsed_s": 50.0}, "embedding", 150.0),
        (100, True, {"progress.done": 50.0, "progress.before": 40.0, "progress.elapsed_s": 20.0}, "embedding", 100.0),
        (100, True, {"progress.done": 100.0, "progress.elapsed_s": 200.0, "images": 100.0}, "done", 0.0),
    ],
)
def test_a_run_is_planned_asked_for_under_way_and_done(
    to_embed: int, needs_approval: bool, metrics: dict[str, float], state: str, left_s: float
) -> None:
    told = entry(to_embed, needs_approval, **metrics)
    assert (told["state"], told["left_s"], told["url"]) == (state, left_s, "http://mlflow/r1")
