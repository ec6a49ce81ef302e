"""A direct route is answered as FastAPI would answer it."""

from typing import cast

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from serving.api.direct_route import DirectRoute
from serving.api.errors import ApiError, handle_errors
from serving.api.metrics import RequestMetrics
from serving.api.middleware import RequestMiddleware
from serving.circuit_breaker import PAUSE_S
from serving.contract.preprocess import ImageRejected
from serving.index.collection import too_slow
from serving.index.engine import EngineUnavailable
from serving.invalid_request import InvalidRequest
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import NoTracing

ERRORS = {
    "request": InvalidRequest("k is no number"),
    "shape": ValueError("operands could not be broadcast together with shapes (3,) (4,)"),
    "image": ImageRejected("format", "that is not a picture"),
    "busy": ApiError(503, "too many searches", "overloaded", {"Retry-After": "1"}),
    "away": EngineUnavailable("pgvector does not answer"),
    "slow": too_slow("pgvector", 400_000, 2),
    "bug": KeyError("a mistake of ours"),
}


def open_client(direct: bool, metrics: Metrics) -> TestClient:
    """An application that echoes bodies and raises the error a body names, with the route called directly or by FastAPI."""
    counts = RequestMetrics(metrics)
    app = FastAPI()
    handle_errors(app, counts)

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        body = (await request.body()).decode()
        if body in ERRORS:
            raise ERRORS[body]
        return PlainTextResponse(body + request.query_params.get("more", ""), headers={"X-App": request.app.title})

    @app.get("/echo")
    async def other() -> str:
        return "by FastAPI"

    if direct:
        route = next(r for r in app.routes if getattr(r, "endpoint", None) is echo)
        app.add_middleware(DirectRoute, route=cast(APIRoute, route), metrics=counts)
    app.add_middleware(RequestMiddleware, metrics=counts, tracing=NoTracing())
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/echo?more=1", "x"), *(("POST", "/echo", name) for name in ERRORS), ("GET", "/echo", ""), ("PUT", "/echo", "x"),
     ("POST", "/echo/", "x"), ("POST", "/nowhere", "x")],
)  # fmt: skip
def test_status_headers_body_and_counts_are_those_of_fastapi(method: str, path: str, body: str) -> None:
    """The same answer and the same metrics for answers, errors, bugs, other methods and other paths."""
    answers, counts = [], []
    for direct in (True, False):
        metrics = Metrics()
        sent = open_client(direct, metrics).request(method, path, content=body, headers={"X-Request-Id": "r1"})
        answers.append((sent.status_code, sorted(sent.headers.items()), sent.text))
        told = metrics.text().decode().splitlines()
        counts.append([line for line in told if line.startswith(("vitrine_requests_total", "vitrine_rejected_total"))])
    assert answers[0] == answers[1]
    assert counts[0] == counts[1]
    assert counts[0]


@pytest.mark.parametrize("direct", [True, False])
def test_a_value_error_of_ours_is_no_mistake_of_the_caller(direct: bool) -> None:
    metrics = Metrics()
    client = open_client(direct, metrics)
    refused, failed = (client.post("/echo", content=name) for name in ("request", "shape"))
    assert (refused.status_code, refused.json()["detail"], refused.json()["reason"]) == (422, "k is no number", "request")
    assert (failed.status_code, failed.json()["reason"]) == (500, "internal")
    assert failed.headers["content-type"] == "application/problem+json"
    assert "shapes" not in failed.text
    counted = [line for line in metrics.text().decode().splitlines() if line.startswith("vitrine_requests_total")]
    assert any('status="500"' in line for line in counted), counted


def test_an_engine_that_is_away_is_worth_asking_again_and_a_filter_that_is_too_slow_is_not() -> None:
    client = open_client(True, Metrics())
    away, slow = (client.post("/echo", content=name) for name in ("away", "slow"))
    assert (away.status_code, away.json()["reason"], away.headers["Retry-After"]) == (503, "engine_away", f"{PAUSE_S:.0f}")
    assert (slow.status_code, slow.json()["reason"], "Retry-After" in slow.headers) == (504, "filter_too_slow", False)
