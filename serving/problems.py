"""Errors as problem+json with one useful sentence; a request id and a count for every answer."""

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.contract.preprocess import ImageRejected
from serving.filters import FilterError
from serving.metrics import Metrics
from serving.models import Problem
from serving.phases import DeadlinePassed
from serving.queries import QueryError
from serving.tracing import Traced, Tracing

log = logging.getLogger(__name__)

TITLES = {
    401: "Unauthorized", 404: "Not found", 405: "Not allowed", 408: "Too slow", 413: "Too large", 415: "Not supported",
    422: "Cannot be answered", 429: "Too often", 500: "Our fault", 503: "Not now", 504: "Too late",
}  # fmt: skip
IMAGE_STATUS = {"too_many_bytes": 413, "too_many_pixels": 413, "too_many_frames": 413, "format": 415, "not_an_image": 415}
GONE = 499
"""Counted where the caller went away before there was an answer; never sent."""
UNTOLD = ("/healthz", "/readyz", "/metrics", "/static", "/v1/version")
"""Routes that machines ask every few seconds: counted, and neither logged nor traced."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Refused(Exception):
    """A request answered with a problem: status, one sentence, and a short reason code."""

    def __init__(self, status: int, detail: str, reason: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Requests:
    """ASGI middleware: every answer carries `X-Request-Id` (the caller's own where it is a plain word), is counted, logged, traced."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else token_hex(8)
        scope.setdefault("state", {}).update(request_id=request_id, phases=[])
        logs.request_id.set(request_id)
        traced, began = self.tracing.begin(headers, time.time()), time.perf_counter()
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except ClientDisconnect:  # nobody is there to be answered, and nothing of ours is wrong
            status = status or GONE
        except Exception as error:  # what nobody foresaw is ours; the caller gets a sentence, the log the rest
            log.error("request %s failed", request_id, exc_info=error)
            if status:
                raise
            detail = "the search failed for a reason of ours; the log has it under this request id"
            await _answer(_problem(500, detail, "internal", request_id))(scope, receive, named)
        finally:
            # In the loop's next turn: at the end of this one, what was written is sent.
            asyncio.get_running_loop().call_soon(self._tell, scope, traced, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, traced: Traced, status: int, took_s: float) -> None:
        """Counts, logs and traces a request that is over."""
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.request(route, status, took_s)
        if route in UNTOLD:
            return
        fields = {"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * took_s, 2)}
        log.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})
        attributes = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
        attributes["vitrine.request_id"] = scope["state"]["request_id"]
        traced.end(f"{scope['method']} {route}", took_s, attributes, scope["state"]["phases"])


EXPECTED = (Refused, QueryError, DeadlinePassed, ImageRejected, RequestValidationError, ValueError)
"""What a request, or one search of a batch, may raise and is answered a problem for; whatever else is raised is ours."""


def problem_of(error: Exception, request_id: str, metrics: Metrics) -> Problem:
    """What is answered where one of EXPECTED was raised: here it ends. An image that is refused is counted."""
    if isinstance(error, ImageRejected):
        metrics.rejected.labels(error.reason).inc()
    status, detail, reason = _told(error)
    error.__traceback__ = None  # its frames hold the error, the photo and the version: a circle that Python finds late
    return _problem(status, detail, reason, request_id)


def _told(error: Exception) -> tuple[int, str, str]:
    """Status, sentence and reason code."""
    match error:
        case Refused() | QueryError() | FilterError():
            return error.status, str(error), error.reason
        case DeadlinePassed():
            return 504, str(error), "deadline"
        case ImageRejected():
            return IMAGE_STATUS.get(error.reason, 422), str(error), error.reason
        case RequestValidationError() | ValidationError():
            return 422, sentence_of(error.errors()), "request"
        case UnicodeError():
            return 422, "the request holds half of a character (a lone surrogate)", "request"
    return 422, str(error), "request"


def _problem(status: int, detail: str, reason: str, request_id: str) -> Problem:
    return Problem(title=TITLES.get(status, "Error"), status=status, detail=detail, reason=reason, request_id=request_id)


def _answer(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store"} | dict(headers or {})
    return JSONResponse(problem.model_dump(), problem.status, headers=headers, media_type="application/problem+json")


def sentence_of(errors: Any) -> str:
    """One sentence for the first of pydantic's errors, with where it is."""
    first = errors[0]
    where = ".".join(str(p) for p in first["loc"] if p not in ("body", "query", "path"))
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def handle_errors(app: FastAPI, metrics: Metrics, tracing: Tracing) -> None:
    """Every error becomes problem+json."""
    app.add_middleware(Requests, metrics=metrics, tracing=tracing)

    async def expected(request: Request, error: Exception) -> JSONResponse:
        return _answer(problem_of(error, request.state.request_id, metrics), getattr(error, "headers", None))

    for kind in EXPECTED:
        app.add_exception_handler(kind, expected)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        """The router's own: a path that nobody serves, or not by this method. Two routes may share a path, each with its methods."""
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            detail = "nothing is served at this path; GET /openapi.json describes what is"
        elif error.status_code == 405:
            there = [r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
            methods = {m for r in there for m in r.methods or ()} or {"GET", "HEAD"}  # a static file has no route of its own
            headers["Allow"] = ", ".join(sorted(methods))
            detail = f"this path takes {headers['Allow']}, not {request.method}; GET /openapi.json describes it"
        return _answer(_problem(error.status_code, detail, "route", request.state.request_id), headers)
