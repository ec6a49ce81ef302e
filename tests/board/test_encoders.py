"""What the board says of encoder versions: the gates of the newest evaluation, over a real registry."""

from pathlib import Path

import pytest

from tasks.board.encoders import encoder_entries
from tasks.registry import ENCODER_MODEL, Registry
from tests.registered import Shop

pytestmark = pytest.mark.slow
GATE = {
    "name": "parity",
    "value": 1e-6,
    "threshold": 1e-4,
    "passed": True,
    "reason": "Largest difference: 1e-06 (at most 0.0001 is allowed)",
}


def test_the_newest_evaluation_of_each_version_is_shown_with_its_figures(mlflow_uri: str, tmp_path: Path) -> None:
    registry = Registry(mlflow_uri, tmp_path / "cache")
    shop = Shop(tmp_path, registry)
    judged, never = shop.encoder(), shop.encoder(seed=1)
    shop.evaluate(judged, GATE | {"value": 0.5, "passed": False})
    shop.evaluate(judged, GATE)
    for _ in range(2):  # the second time from the cache
        found = {
            e["version"]: e for e in encoder_entries([registry.version(ENCODER_MODEL, v) for v in (judged, never)], registry)
        }
        assert found[judged]["gates"] == [GATE]
        assert "/artifactPath/report" in found[judged]["links"]["Evaluation"]
        assert found[never]["gates"] == []
        assert "Evaluation" not in found[never]["links"]
