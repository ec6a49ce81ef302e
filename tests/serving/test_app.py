"""The HTTP interface over a real release: answers, refusals, and what each says of itself."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from serving.app import create_app
from serving.settings import ServingSettings
from tests.serving.conftest import TOKEN


@pytest.fixture
def photo(made: Path) -> bytes:
    return (made / "shop" / "photos" / "4-2.jpg").read_bytes()


def test_a_photo_finds_its_product_and_the_answer_names_its_version(client: TestClient, photo: bytes) -> None:
    answer = client.post("/v1/search", files={"image": photo}, data={"k": "5", "explain": "true"})
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["results"][0]["product_id"] == "p004"
    assert len(body["results"]) == 5
    assert body["version"] == {"index": "1", "encoder": "1", "tower": "student", "variant": "fp32", "manifest": "made 1"}
    assert body["coverage"] == {"shards_ok": 2, "shards_total": 2}
    assert set(body["timings_ms"]) == {"decode", "encode", "retrieve", "rank", "total"}
    first = body["results"][0]
    assert sum(first["reasons"].values()) == pytest.approx(first["score"], abs=1e-3)
    assert "retrieve;dur=" in answer.headers["server-timing"]
    assert answer.headers["x-request-id"] == body["request_id"]


def test_json_by_image_product_and_vector(client: TestClient, photo: bytes) -> None:
    by_image = client.post("/v1/search", json={"image": base64.b64encode(photo).decode()}).json()
    assert by_image["results"][0]["product_id"] == "p004"
    similar = client.get("/v1/products/p004/similar", params={"k": 3}).json()["results"]
    assert len(similar) == 3
    assert "p004" not in [r["product_id"] for r in similar]
    vector = np.zeros(16)
    vector[0] = 1
    assert len(client.post("/v1/search", json={"vector": vector.tolist(), "k": 4}).json()["results"]) == 4


def test_rules_count_the_products_that_are_shown(home: Path) -> None:
    """The product that is asked about, the nearest of all, takes neither a place before a pin nor its brand's share."""
    path = home / "release" / "1" / "manifest.json"
    rules = {"max_per_brand": 1, "pin": [{"product_id": "p003", "place": 2}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranker": {"rules": rules}}))
    app = create_app(ServingSettings(release=str(home / "release")))
    app.state.replica.slots.refresh()
    with TestClient(app) as client:
        found = client.post("/v1/search", json={"product_id": "p004", "k": 11, "explain": True}).json()["results"]
    assert len(found) == 11
    assert (found[1]["product_id"], found[1]["notes"]) == ("p003", ["pinned at place 2"])
    early = [r["brand"] for r in found if not r["notes"]]
    assert "brand 1" in early  # that of p004


def test_the_same_photo_again_is_not_encoded_again(client: TestClient, photo: bytes) -> None:
    first = client.post("/v1/search", files={"image": photo}).json()
    second = client.post("/v1/search", files={"image": photo}).json()
    assert first["cached"] == []
    assert second["cached"] == ["response"]
    assert "encode" not in second["timings_ms"]
    assert [r["product_id"] for r in first["results"]] == [r["product_id"] for r in second["results"]]


def test_a_filter_is_exact_and_never_leaves_the_answer_short(client: TestClient, photo: bytes) -> None:
    wanted = {"brand": ["brand 1"], "price": {"gte": 12}, "in_stock": True}
    body = client.post("/v1/search", files={"image": photo}, data={"filter": json.dumps(wanted)}).json()
    found = {r["product_id"] for r in body["results"]}
    expected = {f"p{n:03d}" for n in range(12) if n % 3 == 1 and 10 + n >= 12 and n % 5 != 0}
    assert found == expected
    by_category = client.post("/v1/search", json={"product_id": "p000", "filter": {"category": ["leaf 2"]}}).json()["results"]
    assert {r["product_id"] for r in by_category} == {"p002", "p006", "p010"}
    assert client.post("/v1/search", json={"product_id": "p000", "filter": {"brand": ["nobody"]}}).json()["results"] == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "exactly one of image"),
        ({"image": "!!"}, 422, "not base64"),
        ({"product_id": "p1", "vector": [1.0]}, 422, "exactly one"),
        ({"product_id": "nobody"}, 404, "is not in this index version"),
        ({"vector": [1.0, 0.0]}, 422, "has 2 numbers, this index version takes 16"),
        ({"vector": [1.0] * 16}, 422, "unit length"),
        ({"product_id": "p001", "k": 0}, 422, "k: "),
        ({"product_id": "p001", "colour": "red"}, 422, "colour"),
        ({"image": base64.b64encode(b"junk" * 9).decode()}, 415, "not an image"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_one_sentence(client: TestClient, body: dict, status: int, words: str) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_bodies_that_are_no_request_are_refused(client: TestClient, photo: bytes) -> None:
    send = lambda **kw: client.post("/v1/search", **kw)  # noqa: E731
    assert send(content=b"{", headers={"content-type": "application/json"}).json()["detail"] == "the body is not JSON"
    assert send(content=b"[1]", headers={"content-type": "application/json"}).status_code == 422
    assert send(content=photo, headers={"content-type": "image/jpeg"}).status_code == 415
    assert "field image is missing" in send(files={"picture": photo}).json()["detail"]
    broken = send(content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 422
    truncated = send(files={"image": photo[: len(photo) // 2]})
    assert (truncated.status_code, truncated.json()["reason"]) == (422, "truncated")
    huge = send(files={"image": b"\xff" * (3 * 2**20)})
    assert (huge.status_code, huge.json()["reason"]) == (413, "too_many_bytes")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    assert send(files={"image": bomb.getvalue()}).json()["reason"] == "too_many_pixels"
    for kind, status in (("PNG", 413), ("WEBP", 413), ("JPEG", 200)):  # 26 megapixels
        large = io.BytesIO()
        Image.new("L", (5100, 5100)).save(large, kind)
        answer = send(files={"image": large.getvalue()})
        assert answer.status_code == status
        assert status == 200 or "at most 25000000 pixels are accepted" in answer.json()["detail"]


def test_admin_routes_need_the_token(client: TestClient) -> None:
    ask = lambda **headers: client.post("/v1/search", params={"slot": "blue"}, json={"product_id": "p001"}, headers=headers)  # noqa: E731
    assert ask().status_code == 401
    assert ask(authorization="Bearer wrong").status_code == 401
    assert ask(authorization=f"Bearer {TOKEN}").status_code == 200
    empty = client.post(
        "/v1/search", params={"slot": "green"}, json={"product_id": "p001"}, headers={"authorization": f"Bearer {TOKEN}"}
    )
    assert empty.status_code == 503
    assert "green holds no version" in empty.json()["detail"]


def test_state_pictures_metrics_and_page(client: TestClient, photo: bytes) -> None:
    state = client.get("/v1/version").json()
    assert state["live"]["version"] == "1"
    assert state["slots"]["blue"]["state"] == "ready"
    assert state["slots"]["green"]["state"] == "empty"
    assert state["notice"] == "sample data"
    assert client.get("/healthz").json() == {"status": "alive"}
    picture = client.get("/v1/images/p001")
    assert picture.headers["content-type"] == "image/jpeg"
    assert client.get("/v1/images/none").status_code == 404
    client.post("/v1/search", files={"image": photo})
    metrics = client.get("/metrics").text
    assert 'vitrine_requests_total{route="/v1/search",status="200"} 1.0' in metrics
    assert 'vitrine_live_version{slot="blue",version="1"} 1.0' in metrics
    assert "<title>Vitrine" in client.get("/").text
    assert client.get("/static/app.js").status_code == 200
    assert client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]["requestBody"]
