"""Sampled queries, live recall, and following the aliases at once: what a promotion asks of a replica."""

import base64
import hashlib
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.api.replica import Replica
from serving.contract.webhook_signature import signature
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront


def client(store: Storefront, **settings: object) -> TestClient:
    """A replica that keeps every query and does nothing in the background: it is never started."""
    return TestClient(open_app(store, sample_rate=1.0, **settings))


def replica(asked: TestClient) -> Replica:
    app: Any = asked.app
    found: Replica = app.state.replica
    return found


def test_a_search_is_kept_as_its_vector_and_the_sha256_of_its_photo(store: Storefront, admin: dict[str, str]) -> None:
    asked = client(store)
    photo = store.photos[store.ids[3]]
    asked.post("/v1/search", files={"image": ("p.jpg", photo)})
    asked.post("/v1/search", json={"vector": store.vectors["1"][5].tolist()})
    asked.post("/v1/search", json={"product_id": store.ids[7]})
    found = asked.get("/v1/samples", headers=admin).json()["samples"]
    assert [s["kind"] for s in found] == ["product", "vector", "photo"]
    assert [s["photo_sha256"] for s in found] == ["", "", hashlib.sha256(photo).hexdigest()]
    assert [s["photo"] for s in found] == [None, None, None]
    vectors = [np.frombuffer(base64.b64decode(s["vector"]), "<f4") for s in found]
    assert vectors[1].tolist() == pytest.approx(store.vectors["1"][5].tolist(), abs=1e-6)
    again = asked.post("/v1/search?slot=blue", json={"vector": vectors[2].tolist()}, headers=admin).json()["results"]
    first = asked.post("/v1/search", files={"image": ("p.jpg", photo)}).json()["results"]
    assert [r["product_id"] for r in again] == [r["product_id"] for r in first]


@pytest.mark.parametrize(
    ("body", "headers"),
    [({"user": {"price": 25}}, {}), ({}, {"Sec-GPC": "1"})],
    ids=["personal", "wishes not to be"],
)
def test_some_are_never_kept(store: Storefront, admin: dict[str, str], body: dict, headers: dict[str, str]) -> None:
    asked = client(store)
    answer = asked.post("/v1/search", json={"product_id": store.ids[1]} | body, headers=headers)
    assert answer.status_code == 200
    store.point(blue="1", green="2", live="1")
    replica(asked).slots.refresh()
    for slot in ("green", "blue"):
        assert asked.post(f"/v1/search?slot={slot}", json={"product_id": store.ids[1]}, headers=admin).status_code == 200
    assert asked.get("/v1/samples", headers=admin).json()["samples"] == []


def test_photos_are_given_where_the_setting_keeps_them(store: Storefront, admin: dict[str, str]) -> None:
    asked = client(store, sample_photos=True)
    photo = store.photos[store.ids[3]]
    asked.post("/v1/search", files={"image": ("p.jpg", photo)})
    (sample,) = asked.get("/v1/samples", headers=admin).json()["samples"]
    assert base64.b64decode(sample["photo"]) == photo


def test_these_routes_need_the_admin_token(store: Storefront) -> None:
    asked = client(store)
    assert asked.get("/v1/samples").status_code == 401
    assert asked.post("/v1/follow", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_replica_flips_when_it_is_told_to_look(store: Storefront, admin: dict[str, str]) -> None:
    asked = client(store)
    store.point(blue="1", green="2", live="1")
    replica(asked).slots.refresh()
    store.point(blue="1", green="2", live="2")
    assert asked.get("/v1/version").json()["live"]["version"] == "1"
    assert asked.post("/v1/follow", headers=admin).json()["live"] == {"version": "2", "slot": "green"}
    assert asked.get("/v1/version").json()["live"]["version"] == "2"


def test_live_recall_is_measured_once_for_each_sample_and_version(store: Storefront) -> None:
    asked = client(store)
    for place in range(5):
        asked.post("/v1/search", json={"vector": store.vectors["1"][place].tolist()})
    measured = replica(asked).live_recall
    rests = [measured.step() for _ in range(6)]
    assert rests[-1] == 1.0, "nothing is left to measure"
    told = measured.sums_by_version()
    assert (told["1"].queries, told["1"].recall) == (5, 5.0)  # a flat index finds everything
    metrics = asked.get("/metrics").text
    assert 'vitrine_live_recall_queries{version="1"} 5.0' in metrics
    assert 'vitrine_live_recall_sum{version="1"} 5.0' in metrics
    assert "vitrine_samples 5.0" in metrics


def test_a_signed_message_makes_it_look_and_any_other_does_not(store: Storefront) -> None:
    asked = client(store, webhook_secret="a secret of the tests")
    store.point(green="2")
    body = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "product-index", "alias": "green"}}'

    def told(secret: str = "a secret of the tests", sent: float | None = None, content: bytes = body) -> Any:
        at = str(int(time.time() if sent is None else sent))
        mark = signature(secret, "one", at, body)
        headers = {"x-mlflow-delivery-id": "one", "x-mlflow-timestamp": at, "x-mlflow-signature": mark}
        return asked.post("/v1/hooks/mlflow", content=content, headers=headers)

    for refused in (told(secret="guess"), told(sent=0), told(content=body + b" "), asked.post("/v1/hooks/mlflow", content=body)):
        assert (refused.status_code, refused.json()["reason"]) == (401, "signature")
    assert replica(asked).slots.slots["green"].state == "empty"
    assert told().json()["slots"]["green"]["state"] == "loading"
    assert asked.post("/v1/hooks/mlflow", content=bytes(100_000)).status_code == 413


def test_without_a_secret_no_message_is_believed(store: Storefront) -> None:
    asked = client(store)
    at = str(int(time.time()))
    headers = {"x-mlflow-delivery-id": "one", "x-mlflow-timestamp": at, "x-mlflow-signature": signature("", "one", at, b"{}")}
    assert asked.post("/v1/hooks/mlflow", content=b"{}", headers=headers).status_code == 401
