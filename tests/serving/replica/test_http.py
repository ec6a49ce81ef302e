"""The HTTP interface, over a real release of two versions."""

import base64
import dataclasses
import gc
import gzip
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from serving.api.dependencies import LARGE
from serving.search import pipeline
from serving.search.caches import Caches
from serving.search.query import Query
from serving.telemetry.timing import Deadline, Timings
from serving.versions.release import Release
from tests.running import until
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront, draw

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\nx\r\n'
    b'--x\r\nContent-Disposition: form-data; name="filter"\r\n\r\n{"1": 1}\r\n--x--\r\n'
)


def form(charset: str) -> dict[str, str]:
    """Headers of a form whose text is in this charset."""
    return {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}


def test_photos_find_their_products(asked: TestClient, front: Storefront) -> None:
    hits = 0
    for product_id, photo in front.photos.items():
        answer = asked.post("/v1/search", files={"image": ("p.jpg", photo)}, data={"k": "5"}).json()
        hits += product_id in [r["product_id"] for r in answer["results"]]
        assert answer["version"] == {"index": "1", "encoder": "1", "tower": "student", "variant": "fp32", "manifest": "made-1"}
        assert answer["coverage"] == {"shards_ok": 2, "shards_total": 2}
    assert hits / len(front.ids) > 0.6  # an untrained encoder; a wrong path would find 5 of 48


def test_the_answer_carries_its_timings_its_id_and_its_sorted_scores(asked: TestClient) -> None:
    response = asked.post("/v1/search", files={"image": ("p.jpg", draw(1, 999))}, headers={"X-Request-Id": "mine-1"})
    answer = response.json()
    assert response.headers["x-request-id"] == answer["request_id"] == "mine-1"
    assert set(answer["timings_ms"]) == {"decode", "encode", "retrieve", "rank", "total"}
    assert "encode;dur=" in response.headers["server-timing"]
    scores = [r["score"] for r in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 20


def test_the_same_photo_as_base64_gives_the_same_answer(asked: TestClient, front: Storefront) -> None:
    photo = front.photos[front.ids[3]]
    form = asked.post("/v1/search", files={"image": ("p.jpg", photo)}).json()
    body = asked.post("/v1/search", json={"image": base64.b64encode(photo).decode()}).json()
    assert form["results"] == body["results"]


def test_similarities_are_those_of_the_vectors_and_terms_add_up(asked: TestClient, front: Storefront) -> None:
    xb = front.vectors["1"]
    for place in (0, 13, 29):
        request = {"vector": xb[place].tolist(), "k": 40, "explain": True}
        results = asked.post("/v1/search", json=request).json()["results"]
        by_id = {r["product_id"]: r["similarity"] for r in results}
        expected = {front.ids[i]: float(s) for i, s in enumerate(xb @ xb[place])}
        assert max(abs(by_id[p] - expected[p]) for p in by_id) < 5e-3  # stored as float16
        nearest = {front.ids[i] for i in np.argsort(-(xb @ xb[place]))[:38]}
        assert len(nearest & set(by_id)) >= 37
        assert all(sum(r["reasons"].values()) == pytest.approx(r["score"], abs=1e-4) for r in results)


def test_similar_products_leave_out_the_product_itself(asked: TestClient, front: Storefront) -> None:
    found = [r["product_id"] for r in asked.get(f"/v1/products/{front.ids[5]}/similar", params={"k": 6}).json()["results"]]
    assert len(found) == 6
    assert front.ids[5] not in found
    assert asked.get("/v1/products/nothing/similar").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"brand": ["Vela"]}, lambda r: r["brand"] == "Vela"),
        ({"category": ["Shoes"]}, lambda r: "Shoes" in r["category"]),
        ({"category": ["Home"], "price": {"lte": 20}}, lambda r: r["price"] <= 20),
        ({"price": {"gte": 30, "lte": 33}}, lambda r: 30 <= r["price"] <= 33),
        ({"in_stock": True}, lambda r: r["in_stock"]),
        ({"brand": ["nobody"]}, lambda r: False),
    ],
)
def test_filters_hold_exactly_and_leave_nothing_out(
    asked: TestClient, front: Storefront, wanted: dict, holds: Callable[[dict], bool]
) -> None:
    vector = {"vector": front.vectors["1"][0].tolist(), "k": 48}
    every = asked.post("/v1/search", json=vector).json()["results"]
    expected = {r["product_id"] for r in every if holds(r)}
    by_vector = asked.post("/v1/search", json=vector | {"filter": wanted}).json()
    form = {"filter": json.dumps(wanted), "k": "48"}
    by_photo = asked.post("/v1/search", files={"image": ("p.jpg", front.photos[front.ids[0]])}, data=form).json()
    for answer in (by_vector, by_photo):
        assert {r["product_id"] for r in answer["results"]} == expected


def test_a_repeated_question_comes_from_the_cache_and_a_personal_one_never(asked: TestClient) -> None:
    photo = draw(2, 4242)
    first = asked.post("/v1/search", files={"image": ("p.jpg", photo)})
    again = asked.post("/v1/search", files={"image": ("p.jpg", photo)})
    assert first.json()["cached"] == []
    assert again.json()["cached"] == ["response"]
    assert again.json()["results"] == first.json()["results"]
    assert again.json()["request_id"] != first.json()["request_id"]
    encoded = base64.b64encode(photo).decode()
    for _ in range(2):
        mine = asked.post("/v1/search", json={"image": encoded, "user": {"brands": {"Vela": 1}}, "explain": True})
        assert mine.json()["cached"] == ["embedding", "candidates"]
        assert mine.headers["cache-control"] == "private, no-store"
        assert "etag" not in mine.headers
        assert any(r["reasons"]["affinity"] > 0 for r in mine.json()["results"])
    assert asked.post("/v1/search", files={"image": ("p.jpg", photo)}).json()["results"] == first.json()["results"]


def test_another_version_never_answers_from_the_old_ones_cache(store: Storefront) -> None:
    store.point(green="2")
    app = open_app(store)
    with TestClient(app) as client:
        ask = {"files": {"image": ("p.jpg", store.photos[store.ids[0]])}}
        client.post("/v1/search", **ask)
        assert client.post("/v1/search", **ask).json()["cached"] == ["response"]
        similar = f"/v1/products/{store.ids[0]}/similar"
        tag = {"If-None-Match": client.get(similar).headers["etag"]}
        assert client.get(similar, headers=tag).status_code == 304
        store.point(live="2")
        app.state.replica.slots.refresh()
        assert client.get(similar, headers=tag).json()["version"]["index"] == "2"
        answer = client.post("/v1/search", **ask)
        assert answer.status_code == 200
        assert (answer.json()["version"]["index"], answer.json()["cached"]) == ("2", [])


def test_an_unchanged_answer_is_304_and_another_question_is_not(asked: TestClient, front: Storefront) -> None:
    url = f"/v1/products/{front.ids[9]}/similar"
    first = asked.get(url)
    assert "public" in first.headers["cache-control"]
    tag = {"If-None-Match": first.headers["etag"]}
    again = asked.get(url, headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    assert asked.get(url, params={"k": 3}, headers=tag).status_code == 200
    assert first.headers["etag"].startswith('W/"')
    strong = first.headers["etag"].removeprefix("W/")
    for known in (strong, f'"other", {strong}', f'W/"other",{first.headers["etag"]}', "*"):
        assert asked.get(url, headers={"If-None-Match": known}).status_code == 304
    assert asked.get(url, headers={"If-None-Match": 'W/"other"'}).status_code == 200
    assert asked.get("/v1/products/nothing/similar", headers={"If-None-Match": "*"}).status_code == 404


def test_a_posted_photo_names_its_address_unless_that_is_too_long(asked: TestClient) -> None:
    photo = {"image": ("p.jpg", draw(1, 77))}
    first = asked.post("/v1/search", files=photo, data={"filter": '{"brand": "Vela"}', "k": "3"})
    again = asked.get(first.headers["content-location"])
    assert again.json()["results"] == first.json()["results"]
    many = json.dumps({"brand": ["Vela", *(f"nobody {n}" for n in range(200))]})
    long = asked.post("/v1/search", files=photo, data={"filter": many, "k": "3"})
    assert long.json()["results"] == first.json()["results"]
    assert "content-location" not in long.headers


def test_a_batch_answers_each_search_and_a_bad_one_fails_alone(asked: TestClient, front: Storefront) -> None:
    searches = [{"product_id": front.ids[0], "k": 3}, {"product_id": "nothing"}, {"vector": [1.0, 2.0]}, {"image": "!!"}]
    answers = asked.post("/v1/search/batch", json={"searches": searches}).json()["answers"]
    assert len(answers[0]["results"]) == 3
    assert [a.get("status") for a in answers] == [None, 404, 422, 422]
    assert asked.post("/v1/search/batch", json={"searches": []}).status_code == 422


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"json": {}}, 422, "exactly one of"),
        ({"json": {"product_id": "x", "vector": [1.0]}}, 422, "exactly one of"),
        ({"json": {"vector": [0.5] * 16}}, 422, "unit length"),
        ({"json": {"vector": [1.0] + [0.0] * 7}}, 422, "8 numbers, this index version takes 16"),
        ({"json": {"vector": [1e300] * 16}}, 422, "unit length"),
        ({"json": {"product_id": "x", "k": 0}}, 422, "k: "),
        ({"json": {"product_id": "x", "colour": "red"}}, 422, "colour"),
        ({"json": {"product_id": "x", "user": {"price": -1}}}, 422, "user.price"),
        ({"json": {"image": "not base64!"}}, 422, "not base64"),
        ({"json": {"image": ""}}, 422, "no bytes"),
        ({"content": b"[1, 2]", "headers": JSON}, 422, "not a JSON object"),
        ({"json": {"vector": [0.5] * 20_002}}, 422, "the body holds more than 20,000 values"),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {"user": "[" + "1," * 20_001 + "1]"}}, 422, "the field user holds more than"),
        ({"content": b'{"vector": [NaN]}', "headers": JSON}, 422, "not JSON"),
        ({"content": b"{" * 100_000, "headers": JSON}, 422, "not JSON"),
        ({"content": b'{"product_id": "\\ud800"}', "headers": JSON}, 422, "not JSON"),
        ({"content": b"hello"}, 415, "multipart"),
        ({"files": {"image": ("p.jpg", b"hello")}}, 415, "not an image"),
        ({"files": {"image": ("p.jpg", b"")}}, 422, "no bytes"),
        ({"files": {"image": ("p.jpg", draw(0, 1)[:400])}}, 422, "damaged"),
        ({"files": {"picture": ("p.jpg", draw(0, 1))}}, 422, "field image is missing"),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {"k": "many"}}, 422, "k: "),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {"filters": '{"brand": "Vela"}'}}, 422, "the field 'filters' is none of"),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {"product_id": "x"}}, 422, "the field 'product_id' is none of"),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {"filter": "{"}}, 422, "not JSON"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 422, "multipart"),
        ({"content": b"--x\r\nq\r\n", "headers": FORM}, 422, "multipart"),
        ({"content": PART, "headers": form("undefined")}, 422, "not in the charset that it names"),
        ({"content": PART.replace(b"1", b"\\ud800"), "headers": form("unicode_escape")}, 422, "the field filter is not JSON"),
        ({"files": {"image": ("p.jpg", draw(0, 1)), "other": ("p.jpg", draw(0, 1))}}, 422, "multipart body cannot be read: Too many files"),
        ({"files": {"image": ("p.jpg", draw(0, 1))}, "data": {f"f{n}": "1" for n in range(11)}}, 422, "Too many fields"),
        ({"data": {"image": "text"}, "files": {"k": (None, "5")}}, 422, "field image is missing"),
        ({"files": {"image": ("p.jpg", bytes(11 * 2**20))}}, 413, "at most"),
        ({"files": {"image": ("p.jpg", bytes(40 * 2**20))}}, 413, "at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_a_problem_with_a_sentence(asked: TestClient, request_: dict, status: int, says: str) -> None:
    response = asked.post("/v1/search", **request_)
    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert says in problem["detail"]
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_large_photo_is_answered_as_a_small_one(asked: TestClient) -> None:
    small, large = draw(0, 1), draw(0, 1) + bytes(LARGE)
    answers = [asked.post("/v1/search", files={"image": ("p.jpg", photo)}).json()["results"] for photo in (small, large)]
    answers.append(asked.post("/v1/search", json={"image": base64.b64encode(large).decode()}).json()["results"])
    assert answers[0]
    assert answers[0] == answers[1] == answers[2]


def test_a_body_that_does_not_say_its_length_is_cut(asked: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(2**20)

    assert asked.post("/v1/search", content=endless(), headers=JSON).status_code == 413


def test_only_the_admin_token_opens_a_slot(front: Storefront, admin: dict[str, str], store: Storefront) -> None:
    store.point(green="2")
    with TestClient(open_app(store)) as client:
        ask = {"json": {"vector": front.vectors["2"][4].tolist(), "k": 48}, "params": {"slot": "green"}}
        assert client.post("/v1/search", **ask).status_code == 401
        assert client.post("/v1/search", **ask, headers={"Authorization": "Bearer guess"}).status_code == 401
        answer = client.post("/v1/search", **ask, headers=admin)
        assert answer.json()["version"]["index"] == "2"
        assert max(answer.json()["results"], key=lambda r: r["similarity"])["product_id"] == front.ids[4]
        assert answer.headers["cache-control"] == "private, no-store"
        assert client.post("/v1/search", json=ask["json"]).json()["version"]["index"] == "1"
        red = [client.post("/v1/search", **(ask | {"params": {"slot": "red"}})), client.get("/v1/search?text=mug&slot=red")]
        assert [(r.status_code, r.json()["detail"]) for r in red] == [(422, "slot: Input should be '', 'blue' or 'green'")] * 2


def test_without_a_version_it_is_alive_but_not_ready(store: Storefront) -> None:
    store.point(blue="", live="")
    with TestClient(open_app(store)) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        refused = client.post("/v1/search", json={"product_id": "x"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        store.point(blue="1", live="1")
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"status": "ready", "version": "1"}


def test_too_many_waiting_are_refused_at_once(store: Storefront) -> None:
    app = open_app(store, workers=1, queue=0)
    with TestClient(app) as client:
        app.state.replica.waiting = 1
        refused = client.post("/v1/search", json={"product_id": store.ids[0]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        app.state.replica.waiting = 0
        assert client.post("/v1/search", json={"product_id": store.ids[0]}).status_code == 200


def test_a_search_that_waited_too_long_is_not_worked_on(store: Storefront) -> None:
    app, over = open_app(store, workers=1, deadline_s=0.1), threading.Event()
    with TestClient(app) as client:
        app.state.replica.workers.submit(over.wait, 60)
        late = client.post("/v1/search", json={"product_id": store.ids[0]})
        over.set()
        assert (late.status_code, late.json()["reason"]) == (504, "deadline")


def test_a_problem_in_a_batch_is_the_one_of_a_search_by_itself(store: Storefront) -> None:
    """In its words, its reason, and in what is counted."""
    wrong = [
        {"product_id": "nothing"}, {"vector": [1.0, 2.0]}, {"image": "!!"}, {"image": base64.b64encode(b"hello").decode()},
        {"image_url": "https://shop/1.jpg"}, {"product_id": store.ids[0], "filter": {"colour": "red"}},
    ]  # fmt: skip
    with TestClient(open_app(store)) as client:
        alone = [client.post("/v1/search", json=w).json() for w in wrong]
        answers = client.post("/v1/search/batch", json={"searches": wrong}, headers={"X-Request-Id": "mine"}).json()["answers"]
        assert [a | {"request_id": ""} for a in answers] == [a | {"request_id": ""} for a in alone]
        assert [a["request_id"] for a in answers] == [f"mine.{n}" for n in range(len(wrong))]
        assert [a["reason"] for a in answers] == ["query", "query", "request", "not_an_image", "not_enabled", "query"]
        assert 'vitrine_rejected_total{reason="not_an_image"} 2.0' in client.get("/metrics").text


def test_a_search_of_a_batch_that_fails_for_a_reason_of_ours_fails_alone_and_is_logged_and_counted(
    store: Storefront, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search = pipeline.search

    def broken(release: Release, query: Query, *rest: Any) -> Any:
        if query.request.product_id == store.ids[1]:
            raise ValueError("a secret shape")
        return search(release, query, *rest)

    monkeypatch.setattr("serving.search.pipeline.search", broken)
    with TestClient(open_app(store)) as client:
        asked = {"searches": [{"product_id": p} for p in store.ids[:2]]}
        answer = client.post("/v1/search/batch", json=asked, headers={"X-Request-Id": "mine"})
        counted = client.get("/metrics").text
    fine, failed = answer.json()["answers"]
    assert (answer.status_code, len(fine["results"])) == (200, 20)
    assert (failed["status"], failed["reason"], failed["request_id"]) == (500, "internal", "mine.1")
    assert "secret" not in answer.text
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.getMessage() == "request mine.1 failed"
    assert told.exc_info is not None
    assert "a secret shape" in str(told.exc_info[1])
    for status in ("200", "500"):
        assert f'vitrine_requests_total{{route="/v1/search/batch",status="{status}"}} 1.0' in counted


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch"])
def test_nothing_of_a_search_outlives_its_problem(store: Storefront, path: str) -> None:
    """Whatever an error's traceback leads to, a photo or a version, is not left in a circle for Python to find some day."""

    def left() -> int:
        return sum(type(o) in (Query, Timings) for o in gc.get_objects())

    wrong: list[dict[str, object]] = [
        {"product_id": "nothing"}, {"vector": [1.0, 2.0]}, {"text": "a mug"}, {"image": base64.b64encode(b"hello").decode()},
        {"image": base64.b64encode(store.photos[store.ids[0]][:700]).decode()},
        {"product_id": store.ids[0], "filter": {"colour": "red"}},
    ]  # fmt: skip
    with TestClient(open_app(store)) as client:
        for search in wrong:
            gc.collect()
            before = left()
            gc.disable()
            try:
                answer = client.post(path, json=search if path == "/v1/search" else {"searches": [search]})
                assert answer.status_code in (200, 404, 415, 422)
                until(lambda before=before: left() <= before)
            finally:
                gc.enable()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/search", "GET, HEAD, POST"),
        ("POST", "/v1/version", "GET, HEAD"),
        ("GET", "/v1/search/batch", "POST"),
        ("POST", "/static/app.js", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_all_it_takes(asked: TestClient, method: str, path: str, allow: str) -> None:
    answer = asked.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert f"this path takes {allow}, not {method}" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/serach", "/v2", "/static/none.js"])
def test_a_path_that_nobody_serves_says_where_all_are_described(asked: TestClient, path: str) -> None:
    answer = asked.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "/openapi.json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("60000", 200), ("20000.5", 200), ("1e9", 200), ("0", 504), ("0.001", 504), ("abc", 422), ("", 422),
        ("-1", 422), ("nan", 422), ("inf", 422),
    ],
)  # fmt: skip
def test_a_caller_may_give_less_time_in_milliseconds(asked: TestClient, front: Storefront, given: str, status: int) -> None:
    search = {"product_id": front.ids[0]}
    alone = asked.post("/v1/search", json=search, headers={"X-Timeout-Ms": given})
    assert alone.status_code == status
    if status == 422:
        assert alone.json()["detail"] == f"X-Timeout-Ms: {given!r} is no number of milliseconds, such as 250 or 0.5"
    batch = asked.post("/v1/search/batch", json={"searches": [search]}, headers={"X-Timeout-Ms": given})
    found = batch.json()["answers"][0].get("status", 200) if batch.status_code == 200 else batch.status_code
    assert found == status


def test_a_batch_has_one_deadline_for_all_its_searches(store: Storefront, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, busy for five deadlines: the last of twelve searches one after the other would find it free."""
    app, begun = open_app(store, workers=1, deadline_s=0.2), threading.Event()
    replica = app.state.replica
    deadline = replica.deadline

    def beginning(*given: str | None) -> Deadline:
        found: Deadline = deadline(*given)
        begun.set()
        return found

    monkeypatch.setattr(replica, "deadline", beginning)
    with TestClient(app) as client:
        replica.workers.submit(lambda: begun.wait(60) and time.sleep(1.0))
        late = client.post("/v1/search/batch", json={"searches": [{"product_id": p} for p in store.ids[:12]]})
        assert late.status_code == 200
        assert [a.get("status") for a in late.json()["answers"]] == [504] * 12


def test_an_unforeseen_failure_is_a_sentence_too(store: Storefront, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr("serving.search.pipeline.search", broken)
    with TestClient(open_app(store), raise_server_exceptions=False) as client:
        response = client.post("/v1/search", json={"product_id": store.ids[0]})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["request_id"] == response.headers["x-request-id"]


def test_pictures_are_shown_from_the_catalogue_only(asked: TestClient, front: Storefront) -> None:
    answer = asked.post("/v1/search", json={"product_id": front.ids[2]}).json()
    picture = asked.get(answer["results"][0]["image_url"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"
    assert "public" in picture.headers["cache-control"]
    for other in ("../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "nothing"):
        assert asked.get(f"/v1/images/{other}").status_code == 404


def test_a_slots_pictures_are_the_admins_and_no_cache_keeps_them(store: Storefront, admin: dict[str, str]) -> None:
    store.point(green="2")
    with TestClient(open_app(store)) as client:
        address = client.post("/v1/search", json={"product_id": store.ids[2]}).json()["results"][0]["image_url"]
        assert client.get(f"{address}?slot=green").status_code == 401
        picture = client.get(f"{address}?slot=green", headers=admin)
        assert picture.status_code == 200
        assert picture.headers["cache-control"] == "private, no-store"
        assert client.get(address).headers["cache-control"] == "public, max-age=3600"


def test_metrics_count_requests_phases_caches_and_name_only_what_is_live(store: Storefront) -> None:
    store.point(green="2")
    app = open_app(store)
    with TestClient(app) as client:
        for photo in (draw(0, 31337), draw(0, 31337), b"nothing"):
            client.post("/v1/search", files={"image": ("p.jpg", photo)})
        assert 'vitrine_live_version{slot="blue",version="1"} 1.0' in client.get("/metrics").text
        store.point(live="2")
        app.state.replica.slots.refresh()
        text = client.get("/metrics").text
    assert 'vitrine_live_version{slot="green",version="2"} 1.0' in text
    assert 'slot="blue",version="1"' not in text
    assert 'vitrine_requests_total{route="/v1/search",status="200"} 2.0' in text
    assert 'vitrine_phase_seconds_count{phase="encode",version="1"} 1.0' in text
    assert 'vitrine_rejected_total{reason="not_an_image"} 1.0' in text
    assert 'vitrine_cache_lookups{cache="response",outcome="hit"} 1.0' in text
    assert "vitrine_flips 2.0" in text


def test_the_page_loads_nothing_from_elsewhere(asked: TestClient) -> None:
    answer = asked.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    page = answer.text
    assert "http" not in page.replace("http://www.w3.org", "")
    for part in ("/static/app.js", "/static/style.css"):
        assert part in page
        assert asked.get(part).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/metrics", "/v1/version", "/", "/static/app.js", "/openapi.json", "/v1/search?product_id={id}",
     "/v1/images/{id}", "/v1/products/{id}/similar", "/v1/products/nothing/similar", "/v1/search", "/nowhere", "/v1/search/batch"],
)  # fmt: skip
def test_head_is_answered_as_get_without_the_body(asked: TestClient, front: Storefront, path: str) -> None:
    path = path.format(id=front.ids[0])
    got, head = asked.get(path), asked.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    stable = {"content-type", "allow", "etag", "cache-control", "content-security-policy"}
    assert {n: v for n, v in head.headers.items() if n in stable} == {n: v for n, v in got.headers.items() if n in stable}
    assert "content-length" in head.headers


def test_a_gzip_body_is_a_body_on_every_route_and_another_encoding_is_named(asked: TestClient, front: Storefront) -> None:
    search = {"product_id": front.ids[0], "k": 3}
    for path, body in (("/v1/search", search), ("/v1/search/batch", {"searches": [search]})):
        content = gzip.compress(json.dumps(body).encode())
        answer = asked.post(path, content=content, headers=JSON | {"content-encoding": "gzip"})
        assert answer.status_code == 200
        refused = asked.post(path, content=content, headers=JSON | {"content-encoding": "br"})
        assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, identity")
        assert "Content-Encoding 'br'" in refused.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_refused_as_such(asked: TestClient, front: Storefront, kind: str) -> None:
    for path in ("/v1/search", "/v1/search/batch"):
        answer = asked.post(path, content=json.dumps({"product_id": front.ids[0]}), headers={"content-type": kind})
        assert (answer.status_code, answer.json()["reason"]) == (415, "format")


def photo_of(kind: str, **options: object) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((700, 500)).save(stream, kind, **options)
    return stream.getvalue()


def test_a_costly_photo_is_answered_as_any_other_and_decoded_in_a_child(store: Storefront) -> None:
    data = photo_of("PNG")
    app = open_app(store)
    replica = app.state.replica
    with TestClient(app) as client:
        cheap = client.post("/v1/search", files={"image": ("p", data)}, data={"explain": "true"}).json()
        assert replica.costly_images.child is None
        limits = replica.limits.model_copy(update={"max_cost": 1})
        replica.deps = dataclasses.replace(replica.deps, caches=Caches(), limits=limits)
        costly = client.post("/v1/search", files={"image": ("p", data)}, data={"explain": "true"}).json()
        assert costly["results"] == cheap["results"]
        assert set(costly["timings_ms"]) == set(cheap["timings_ms"])
        child = replica.costly_images.child
        assert child.poll() is None
        damaged = client.post("/v1/search", files={"image": ("p", data[:3000])})
        assert (damaged.status_code, damaged.json()["reason"]) == (422, "truncated")
        late = client.post("/v1/search", files={"image": ("p", photo_of("WEBP"))}, headers={"X-Timeout-Ms": "1"})
        assert late.status_code == 504
        child.kill()
        again = client.post("/v1/search", files={"image": ("p", photo_of("GIF"))})
        assert again.status_code == 200
        assert replica.waiting_by_address == {}
    assert replica.costly_images.child is None


def test_one_address_holds_its_share_of_waiting_searches_and_others_find_room(store: Storefront) -> None:
    app = open_app(store, workers=1, queue=3, address_share=0.5)
    waiting = app.state.replica.waiting_by_address
    search = {"product_id": store.ids[0]}
    with TestClient(app, client=("10.0.0.1", 1)) as greedy:
        waiting["10.0.0.1"] = 2
        refused = greedy.post("/v1/search", json=search)
        assert (refused.status_code, refused.json()["reason"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert TestClient(app, client=("10.0.0.2", 1)).post("/v1/search", json=search).status_code == 200
        waiting["10.0.0.1"] -= 1
        assert greedy.post("/v1/search", json=search).status_code == 200
    assert waiting == {"10.0.0.1": 1}


def test_a_filter_that_the_version_before_took_says_what_changed(store: Storefront) -> None:
    store.point(green="2")
    app = open_app(store)
    with TestClient(app) as client:
        features = app.state.replica.slots.live.searcher.features
        features.table = features.table.drop_columns(["updated_at"])  # as a catalogue that lost it since the other version
        ask = {"vector": store.vectors["1"][4].tolist(), "filter": {"updated_at": {"gt": "2020-01-01"}}}
        answer = client.post("/v1/search", json=ask)
        (batched,) = client.post("/v1/search/batch", json={"searches": [ask]}).json()["answers"]
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("; in index version 1 the column is not there, in version 2 it was a time")
    assert batched["detail"] == answer.json()["detail"]
