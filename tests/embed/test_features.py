"""The feature store in a real Redis: whole versions, one switch, and leftovers that end by themselves."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.embed import features
from tasks.embed.features import LIVE, TTL_S, FeatureStore
from tasks.errors import ServiceAway, VitrineError
from tests.servers import free_port, redis_server

ROWS = pa.table({
    "key": pa.array(range(5000), pa.int64()), "price": [n / 4 for n in range(5000)], "in_stock": [n % 2 == 0 for n in range(5000)],
    "title": [f"Größe {n}" for n in range(5000)], "category": [["a", str(n)] for n in range(5000)],
})  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[FeatureStore]:
    store = FeatureStore.connect(url)
    store.redis.flushall()
    yield store
    store.redis.close()


def loaded(store: FeatureStore, version: str) -> FeatureStore:
    assert store.load(version, ROWS.to_batches(1500), len(ROWS)) == 5000
    return store


def test_features_come_back_as_they_were_in_the_order_asked_for(store: FeatureStore) -> None:
    found = loaded(store, "7").read("7", [4999, 3, 70_000, 3])
    assert found[0] == {"price": 1249.75, "in_stock": False, "title": "Größe 4999", "category": ["a", "4999"]}
    assert found[2] is None
    assert found[1] == found[3]


def test_a_version_is_seen_only_after_the_switch_and_the_old_one_ends(store: FeatureStore) -> None:
    loaded(store, "1")
    assert store.live() is None
    assert store.switch("1") is None
    loaded(store, "2")
    assert store.live() == "1"
    assert store.switch("2") == "1"
    assert store.live() == "2"
    assert store.redis.ttl("features:2:17") == -1
    assert 0 < store.redis.ttl("features:1:17") <= TTL_S
    assert store.switch("1") == "2", "a rollback"
    assert store.redis.ttl("features:1:17") == -1
    assert store.redis.ttl("features:1:_complete") == -1


def test_half_a_version_cannot_go_live_and_is_written_again(store: FeatureStore) -> None:
    def dies() -> Iterator[pa.RecordBatch]:
        yield ROWS.to_batches(1500)[0]
        raise ConnectionError("killed")

    with pytest.raises(ConnectionError):
        store.load("3", dies(), len(ROWS))
    with pytest.raises(VitrineError, match="version 3 are not complete"):
        store.switch("3")
    assert store.redis.get(LIVE) is None
    assert 0 < store.redis.ttl("features:3:5") <= TTL_S, "what is left over ends by itself"
    loaded(store, "3").switch("3")
    assert store.live() == "3"


def test_a_complete_version_is_not_written_again(store: FeatureStore) -> None:
    loaded(store, "4")
    before = store.redis.info("commandstats")["cmdstat_hset"]["calls"]
    loaded(store, "4")
    assert store.redis.info("commandstats")["cmdstat_hset"]["calls"] == before


def test_volatile_fields_are_refreshed_where_the_product_is(store: FeatureStore) -> None:
    loaded(store, "5")
    assert store.refresh("5", [{"key": 10, "price": 1.5, "in_stock": False}, {"key": 9_999_999, "price": 2.0}]) == 1
    found = store.read("5", [10, 9_999_999])
    assert (found[0]["price"], found[0]["in_stock"], found[0]["title"]) == (1.5, False, "Größe 10")
    assert found[1] is None


def test_a_version_on_a_base_holds_what_differs_and_reads_the_rest_from_it(store: FeatureStore) -> None:
    loaded(store, "base-a").switch("base-a")
    changed = pa.table({"key": pa.array([3, 6000], pa.int64()), "price": [7.0, 8.0], "in_stock": [True, True]})
    for version in ("8", "9"):
        assert store.load(version, changed.to_batches(), 2, base="base-a", gone=[4]) == 2
    store.switch("8")
    found = store.read("8", [3, 4, 5, 6000, 70_000])
    assert (found[0]["price"], found[3]["price"]) == (7.0, 8.0)
    assert found[1] is None, "gone in this version"
    assert found[2]["price"] == 1.25, "as in the base"
    assert found[4] is None
    assert store.read("base-a", [4])[0]["price"] == 1.0
    assert store.refresh("8", [{"key": 3, "price": 1.0}, {"key": 4, "price": 2.0}, {"key": 5, "price": 3.0}]) == 2
    assert [f and f["price"] for f in store.read("8", [3, 4, 5])] == [1.0, None, 3.0]
    assert store.switch("9") == "8"
    assert store.redis.ttl("features:8:3") > 0
    assert store.redis.ttl("features:9:3") == store.redis.ttl("features:base-a:5") == -1, "its base stays with it"
    loaded(store, "base-b").switch("base-b")
    assert store.redis.ttl("features:base-a:5") > 0
    store.switch("9")
    assert store.redis.ttl("features:base-a:5") == store.redis.ttl("features:9:_keys") == -1, "a rollback keeps it again"


def test_a_redis_that_is_silent_is_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServiceAway, match="does not answer: Timeout"):
        FeatureStore.connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")


def test_no_redis_is_one_clear_sentence() -> None:
    with pytest.raises(VitrineError, match="does not answer"):
        FeatureStore.connect(f"redis://127.0.0.1:{free_port()}/0")


def test_the_server_is_a_real_redis(store: FeatureStore, tmp_path: Path) -> None:
    assert store.redis.info("server")["redis_version"]
