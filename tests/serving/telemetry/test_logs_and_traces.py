"""What a replica tells of each request: a line of JSON with its id, a trace to a real collector, Server-Timing."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.cluster.metrics import ShardMetrics
from serving.settings import ServingSettings
from serving.telemetry.metrics import VERSIONS, Metrics
from tests.collector import collecting


@pytest.fixture
def photo(made: Path) -> bytes:
    return (made / "shop" / "photos" / "4-2.jpg").read_bytes()


def open_replica(home: Path, **settings: Any) -> TestClient:
    app = create_app(ServingSettings(release=str(home / "release"), **settings))
    app.state.replica.slots.refresh()
    return TestClient(app, raise_server_exceptions=False)


def test_each_request_is_one_line_of_json_with_its_id(home: Path, photo: bytes, lines: list[dict]) -> None:
    with open_replica(home) as client:
        client.post("/v1/search", files={"image": photo}, headers={"x-request-id": "mine-1"})
        client.post("/v1/search", json={"product_id": "nobody"}, headers={"x-request-id": "not a\tplain word"})
        client.get("/healthz")
    told = [line for line in lines if "route" in line]
    assert [(line["route"], line["status"]) for line in told] == [("/v1/search", 200), ("/v1/search", 404)]
    assert told[0]["request_id"] == "mine-1"
    assert len(told[1]["request_id"]) == 16
    assert told[0]["method"] == "POST"
    assert 0 < told[0]["ms"] < 60_000
    assert {"time", "level", "logger", "message"} <= set(told[0])


def test_what_nobody_foresaw_is_in_the_log_with_its_traceback_and_not_in_the_answer(
    home: Path, lines: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path\nof two lines")

    monkeypatch.setattr("serving.search.pipeline.search", broken)
    with open_replica(home) as client:
        answer = client.post("/v1/search", json={"product_id": "p001"})
    failed = next(line for line in lines if line["level"] == "error")
    assert failed["request_id"] == answer.json()["request_id"]
    assert "a secret path" in failed["error"]
    assert "secret" not in answer.text


def test_traces_join_the_callers_and_have_a_span_for_each_phase(home: Path, photo: bytes) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collecting() as collector:
        with open_replica(home, otel_endpoint=collector.url) as client:
            client.post("/v1/search", files={"image": photo}, headers={"traceparent": f"00-{trace}-{parent}-01"})
            client.get("/healthz")
        spans = collector.spans
    request = next(s for s in spans if s.name == "POST /v1/search")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (trace, parent)
    assert {a.key: a.value.int_value for a in request.attributes}["http.response.status_code"] == 200
    below = [s for s in spans if s.parent_span_id == request.span_id]
    assert {s.name for s in below} == {"decode", "encode", "retrieve", "rank"}
    assert all(
        request.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano <= request.end_time_unix_nano
        for s in below
    )
    assert not [s for s in spans if "healthz" in s.name]


def test_a_collector_that_is_away_costs_no_request(home: Path) -> None:
    with open_replica(home, otel_endpoint="http://127.0.0.1:9/v1/traces") as client:
        assert client.post("/v1/search", json={"product_id": "p001"}).status_code == 200


def test_server_timing_says_what_the_answer_says(home: Path, photo: bytes) -> None:
    with open_replica(home) as client:
        answer = client.post("/v1/search", files={"image": photo})
    timings = {n: float(ms) for n, ms in (part.split(";dur=") for part in answer.headers["server-timing"].split(", "))}
    assert timings == answer.json()["timings_ms"]


def test_versions_of_long_ago_leave_the_metrics() -> None:
    metrics = Metrics()
    shard = ShardMetrics(metrics)
    for number in range(100):
        shard.count("0", str(number), 0.01)
    told = {s.labels["version"] for m in metrics.registry.collect() for s in m.samples if "version" in s.labels}
    assert told == {str(n) for n in range(100 - VERSIONS, 100)}
