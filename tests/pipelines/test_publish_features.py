"""Features in a real Redis beside the versions they belong to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.contract.keys import product_key
from tasks.embed.features import FeatureStore
from tasks.pipelines import drain_changes, publish_features, refresh_index
from tasks.pipelines.index_records import RegisteredVersion
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.refreshed import LiveShop, empty_mlflow, own_mlflow
from tests.servers import free_port, redis_server

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveShop]:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, empty_mlflow(tmp_path / "empty.db")), monkeypatch, products=24)
    with redis_server(tmp_path) as url:
        live.environment["VITRINE_REDIS_URL"] = url
        live.use()
        yield live


def prices(store: FeatureStore, version: str, *numbers: int) -> list[float | None]:
    found = store.read(version, [product_key(f"p{n:03d}") for n in numbers])
    return [f["price"] if f else None for f in found]


def test_features_follow_the_versions_and_what_is_live(live: LiveShop) -> None:
    store = FeatureStore.connect(live.environment["VITRINE_REDIS_URL"])
    publish_features.load(RegisteredVersion(live.base, True, ""))
    assert "are live" in publish_features.switch_features()
    assert prices(store, live.base, 3, 4) == [13.0, 14.0]
    live.send(live.upsert(3, 1), live.delete(4, 1), live.upsert(90, 1, seed=90))
    plan = drain_changes.drain("r1")
    assert publish_features.refresh(plan).products == 1, "the new product is in no version yet"
    assert prices(store, live.base, 3, 4, 90) == [101.0, 14.0, None], "the price is seen at once"
    registered = refresh_index.register(plan, refresh_index.embed(plan))
    assert publish_features.load(registered).products == 2
    made = registered.version
    assert store.live() == live.base
    assert prices(store, made, 3, 4, 90, 5) == [101.0, None, 101.0, 15.0]
    live.registry.set_alias(INDEX_MODEL, "live", made)
    publish_features.switch_features()
    assert store.live() == made
    live.registry.set_alias(INDEX_MODEL, "live", live.base)
    publish_features.switch_features()
    assert store.live() == live.base, "a rollback"
    store.redis.close()


def test_a_redis_that_is_away_is_told_and_holds_nothing_up(live: LiveShop) -> None:
    live.environment["VITRINE_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    live.use()
    assert "does not answer" in publish_features.switch_features()
    live.environment["VITRINE_REDIS_URL"] = ""
    live.use()
    assert publish_features.switch_features() == ""
    assert publish_features.load(RegisteredVersion(live.base, True, "")).products == 0
