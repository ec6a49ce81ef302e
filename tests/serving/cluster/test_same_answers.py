"""A gateway over shards answers every request as a whole replica of the same version does."""

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.contract.manifest import IndexManifest
from serving.index.searcher import Searcher
from serving.versions.golden_answers import write_golden
from serving.versions.version_source import FolderSource
from tests.serving.cluster.conftest import TOKEN, running
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront, draw, put_file, reseal, tombstones

pytestmark = pytest.mark.slow

IGNORED = ("request_id", "timings_ms", "cached")
RULES = {
    "weights": {"category": 0.05, "colour": 0.02, "affinity": 0.05, "popularity": 0.01, "in_stock": 0.005},
    "rules": {
        "require": {"not": {"price": {"gt": 50}}},
        "boost": [{"where": {"brand": "Kiso"}, "by": 0.03}],
        "pin": [{"product_id": "P009/Shoes", "place": 2}],
        "max_per_brand": 3,
    },
}


@pytest.fixture(scope="module")
def pair(front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, TestClient, Storefront]]:
    """A gateway and a whole replica over one release with rules, deleted products, and both slots filled."""
    store = front.copy(tmp_path_factory.mktemp("pair") / "release")
    reseal(store, "1", {"ranker": RULES})
    tombstones(store, "2", store.ids[5:9])
    searcher = Searcher.open(IndexManifest(**store.manifest("2")), FolderSource(store.release).fetch)
    write_golden(store.release / "golden.npz", searcher, store.vectors["2"][:8])
    golden = put_file(store, (store.release / "golden.npz").read_bytes(), "golden.npz")
    reseal(store, "2", {"golden": golden.model_dump()})
    store.point(green="2")
    with running(store, (0,), (1,)) as (gateway, _), TestClient(open_app(store)) as whole:
        yield gateway, whole, store


def same(gateway: TestClient, whole: TestClient, **asked: object) -> dict:
    """The answer of both, which is one and the same."""
    method, path = asked.pop("method", "POST"), asked.pop("path", "/v1/search")
    answers = [client.request(method, path, **asked) for client in (gateway, whole)]  # type: ignore[arg-type]
    a, b = (answer.json() for answer in answers)
    assert answers[0].status_code == answers[1].status_code, (a, b)
    for body in (a, b):
        for one in body.get("answers", [body]):
            for name in IGNORED:
                one.pop(name, None)
    assert a == b
    return a


def vector(store: Storefront, place: int) -> list[float]:
    return store.vectors["1"][place].tolist()


REQUESTS = [
    {"k": 5},
    {"k": 40, "candidates": 48},
    {"k": 200},
    {"explain": True},
    {"filter": {"brand": "Vela"}, "explain": True},
    {"filter": {"category": "Shoes", "price": {"lt": 30}}},
    {"filter": {"or": [{"brand": ["Kiso", "Norda"]}, {"not": {"in_stock": True}}]}},
    {"filter": {"product_id": ["P003/Lamps", "P008/Mugs"]}},
    {"filter": {"brand": "nobody"}},
    {"filter": {"updated_at": {"exists": False}}},
    {"user": {"brands": {"Norda": 0.9}, "categories": {"Bags": 0.4}, "price": 12.0}, "explain": True},
]
REFUSED = [
    {"filter": {"colour": "red"}},
    {"filter": {"price": "cheap"}},
    {"filter": {"brand": {"gt": "A"}}},
    {"k": 0},
    {"candidates": 5000},
]


@pytest.mark.parametrize("fields", REQUESTS + REFUSED)
def test_by_vector_product_and_photo(pair: tuple[TestClient, TestClient, Storefront], fields: dict) -> None:
    gateway, whole, store = pair
    same(gateway, whole, json={"vector": vector(store, 7)} | fields)
    same(gateway, whole, json={"product_id": store.ids[11]} | fields)
    photo = base64.b64encode(store.photos[store.ids[20]]).decode()
    found = same(gateway, whole, json={"image": photo} | fields)
    assert fields in REFUSED or found["coverage"] == {"shards_ok": 2, "shards_total": 2}


def test_other_ways_to_ask(pair: tuple[TestClient, TestClient, Storefront]) -> None:
    gateway, whole, store = pair
    same(gateway, whole, files={"image": ("p.jpg", draw(2, 77, shopper=True))}, data={"k": "7", "explain": "true"})
    box = '{"x": 0.1, "y": 0.2, "width": 0.5, "height": 0.6}'
    same(gateway, whole, files={"image": ("p.jpg", draw(2, 77, shopper=True))}, data={"box": box})
    same(gateway, whole, files={"image": ("p.jpg", draw(2, 77, shopper=True))}, data={"box": '{"x": 2}'})
    same(gateway, whole, method="GET", path=f"/v1/products/{store.ids[3]}/similar", params={"k": 9, "explain": "true"})
    same(gateway, whole, method="GET", path="/v1/products/nobody/similar")
    same(gateway, whole, method="GET", params={"product_id": store.ids[4], "filter": '{"in_stock": true}'})
    same(gateway, whole, json={"text": "a red mug"})
    same(gateway, whole, json={"vector": [1.0, 0.0]})
    searches = [{"vector": vector(store, 1)}, {"product_id": "nobody"}, {"product_id": store.ids[2], "k": 3}]
    answers = same(gateway, whole, path="/v1/search/batch", json={"searches": searches})["answers"]
    assert [("results" in a) for a in answers] == [True, False, True]
    assert gateway.get(f"/v1/images/{store.ids[3]}").content == whole.get(f"/v1/images/{store.ids[3]}").content


def test_the_slot_that_is_not_live_with_deleted_products(pair: tuple[TestClient, TestClient, Storefront]) -> None:
    gateway, whole, store = pair
    admin = {"params": {"slot": "green"}, "headers": {"Authorization": f"Bearer {TOKEN}"}}
    for place in (0, 13, 29):
        found = same(gateway, whole, json={"vector": store.vectors["2"][place].tolist(), "k": 48}, **admin)
        assert not {r["product_id"] for r in found["results"]} & set(store.ids[5:9])
        assert found["version"]["index"] == "2"
    same(gateway, whole, json={"product_id": store.ids[6]}, **admin)


def test_both_measure_the_same_recall_and_vectors(pair: tuple[TestClient, TestClient, Storefront]) -> None:
    gateway, whole, store = pair
    ours, theirs = (c.app.state.replica.slots.live for c in (gateway, whole))  # type: ignore[attr-defined]
    xq = store.vectors["1"][:4]
    np.testing.assert_array_equal(ours.searcher.exact(xq, 10).rows, theirs.searcher.exact(xq, 10).rows)
    for row in (0, 20, 47):
        np.testing.assert_array_equal(ours.vector(row), theirs.vector(row))


def test_what_both_say_of_their_version(pair: tuple[TestClient, TestClient, Storefront]) -> None:
    gateway, whole, _ = pair
    ours, theirs = gateway.get("/v1/version").json(), whole.get("/v1/version").json()
    assert {n: s["products"] for n, s in ours["slots"].items()} == {n: s["products"] for n, s in theirs["slots"].items()}
    assert ours["live"] == theirs["live"]
    assert [(s["up"], s["shards"]) for s in sorted(ours["shards"], key=lambda s: s["shards"])] == [(True, [0]), (True, [1])]
    metrics = gateway.get("/metrics").text
    assert 'vitrine_shard_answers_total{outcome="first",shard="1"}' in metrics
    assert metrics.count("vitrine_shard_up{") == 2
