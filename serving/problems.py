"""Errors as problem+json with one useful sentence; a request id and a count for every answer."""

import logging
import re
import time
from secrets import token_hex
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.contract.preprocess import ImageRejected
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
            await problem(Request(scope), 500, detail, "internal")(scope, receive, named)
        finally:
            self._tell(scope, traced, status, time.perf_counter() - began)

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


def problem(request: Request, status: int, detail: str, reason: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    request_id = getattr(request.state, "request_id", "")
    content = Problem(
        title=TITLES.get(status, "Error"), status=status, detail=detail, reason=reason, request_id=request_id
    )  # fmt: skip
    headers = {"Cache-Control": "no-store"} | (headers or {})
    return JSONResponse(content.model_dump(), status, headers=headers, media_type="application/problem+json")


def sentence_of(errors: Any) -> str:
    """One sentence for the first of pydantic's errors, with where it is."""
    first = errors[0]
    where = ".".join(str(p) for p in first["loc"] if p not in ("body", "query", "path"))
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def handle_errors(app: FastAPI, metrics: Metrics, tracing: Tracing) -> None:
    """Every error becomes problem+json."""
    app.add_middleware(Requests, metrics=metrics, tracing=tracing)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(request, error.status, str(error), error.reason, error.headers)

    @app.exception_handler(QueryError)
    async def query_error(request: Request, error: QueryError) -> JSONResponse:
        return problem(request, error.status, str(error), error.reason, dict(error.headers))

    @app.exception_handler(DeadlinePassed)
    async def too_late(request: Request, error: DeadlinePassed) -> JSONResponse:
        return problem(request, 504, str(error), "deadline")

    @app.exception_handler(ImageRejected)
    async def rejected(request: Request, error: ImageRejected) -> JSONResponse:
        metrics.rejected.labels(error.reason).inc()
        return problem(request, IMAGE_STATUS.get(error.reason, 422), str(error), error.reason)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        return problem(request, 422, sentence_of(error.errors()), "request")

    @app.exception_handler(ValueError)
    async def wrong_value(request: Request, error: ValueError) -> JSONResponse:
        detail = "the request holds half of a character (a lone surrogate)" if isinstance(error, UnicodeError) else str(error)
        return problem(request, 422, detail, "request")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return problem(request, error.status_code, str(error.detail), "", dict(error.headers or {}))
