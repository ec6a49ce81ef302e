"""Steps of a promotion by themselves, over a real MLflow."""

from pathlib import Path

import pytest

from tasks.pipelines import promote_index, promotion_bake
from tasks.registry import INDEX_MODEL, Registry
from tests.registered import Shop

pytestmark = pytest.mark.slow


def test_promoting_what_is_live_already_leaves_no_lease(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing follows such a promotion that would release it, and whoever promotes next would wait until it runs out."""
    shop = Shop(tmp_path, Registry(mlflow_uri, tmp_path / "cache"))
    version = shop.version()
    shop.point(blue=version, live=version)
    shop.registry.tag_version(INDEX_MODEL, version, promotion_bake.BAKE, f"{promotion_bake.KEPT}: a test")
    for name, value in {"HOME": str(tmp_path), "MLFLOW_URI": mlflow_uri, "SERVING_URLS": ""}.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)
    plan = promote_index.choose(version, "by hand")
    assert plan.done
    assert "is live already" in plan.summary
    assert not [tag for tag in shop.registry.model_tags(INDEX_MODEL) if tag.startswith("lease.")]
