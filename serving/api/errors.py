"""Error handling: every error becomes problem+json (RFC 9457) with one useful sentence."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from serving.api.metrics import RequestMetrics
from serving.circuit_breaker import RemoteUnavailable
from serving.contract.preprocess import ImageRejected
from serving.index.engine import FilterTooSlow
from serving.invalid_request import InvalidRequest
from serving.search.query import QueryError
from serving.search.schemas import Problem
from serving.telemetry.timing import DeadlinePassed

log = logging.getLogger(__name__)

TITLES = {
    401: "Unauthorized", 404: "Not found", 405: "Not allowed", 408: "Too slow", 413: "Too large", 415: "Not supported",
    422: "Cannot be answered", 429: "Too often", 500: "Our fault", 503: "Not now", 504: "Too late",
}  # fmt: skip
IMAGE_STATUS = {
    "too_many_bytes": 413, "too_many_pixels": 413, "too_many_frames": 413, "too_many_scans": 413, "format": 415, "not_an_image": 415,
}  # fmt: skip


class ApiError(Exception):
    """An error of the API: HTTP status, one sentence, a short reason code, and headers."""

    def __init__(self, status: int, detail: str, reason: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.headers = status, reason, headers or {}


EXPECTED_ERRORS = (
    ApiError, InvalidRequest, QueryError, DeadlinePassed, ImageRejected, RequestValidationError, RemoteUnavailable, FilterTooSlow,
)  # fmt: skip
"""Errors that are answered with a problem of their own. Anything else, a plain ValueError too, is a bug and becomes a 500."""


def problem_of(error: Exception, request_id: str, metrics: RequestMetrics) -> Problem:
    """The problem of one of EXPECTED_ERRORS. Counts rejected images."""
    if isinstance(error, ImageRejected):
        metrics.rejected.labels(error.reason).inc()
    status, detail, reason = _status_detail_reason(error)
    return problem(status, detail, reason, request_id)


def _status_detail_reason(error: Exception) -> tuple[int, str, str]:
    """HTTP status, detail and reason code of one of EXPECTED_ERRORS."""
    match error:
        case ApiError() | InvalidRequest() | QueryError() | RemoteUnavailable() | FilterTooSlow():
            return error.status, str(error), error.reason
        case DeadlinePassed():
            return 504, str(error), "deadline"
        case ImageRejected():
            return IMAGE_STATUS.get(error.reason, 422), str(error), error.reason
        case RequestValidationError():
            return 422, validation_message(error.errors()), "request"
    raise TypeError(f"{type(error).__name__} is none of the expected errors")


def internal_problem(error: Exception, request_id: str) -> Problem:
    """The problem of an error that nobody foresaw, which is ours: the caller gets a sentence, the log the rest."""
    log.error("request %s failed", request_id, exc_info=error)
    return problem(500, "the search failed for a reason of ours; the log has it under this request id", "internal", request_id)


def problem(status: int, detail: str, reason: str, request_id: str) -> Problem:
    return Problem(title=TITLES.get(status, "Error"), status=status, detail=detail, reason=reason, request_id=request_id)


def problem_response(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store"} | dict(headers or {})
    return JSONResponse(found.model_dump(), found.status, headers=headers, media_type="application/problem+json")


def validation_message(errors: Any) -> str:
    """The first of pydantic's errors as one sentence, with its location."""
    first = errors[0]
    where = ".".join(str(p) for p in first["loc"] if p not in ("body", "query", "path"))
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def error_response(error: Exception, request_id: str, metrics: RequestMetrics) -> JSONResponse:
    """The problem+json response of one of EXPECTED_ERRORS."""
    return problem_response(problem_of(error, request_id, metrics), getattr(error, "headers", None))


def handle_errors(app: FastAPI, metrics: RequestMetrics) -> None:
    """Registers exception handlers that answer problem+json."""

    async def on_expected_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.state.request_id, metrics)

    for kind in EXPECTED_ERRORS:
        app.add_exception_handler(kind, on_expected_error)

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        """404 and 405 of the router. Two routes may share a path, each with its own methods."""
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            detail = "nothing is served at this path; GET /openapi.json describes what is"
        elif error.status_code == 405:
            there = [r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
            methods = {m for r in there for m in r.methods or ()} or {"GET", "HEAD"}  # a static file has no route of its own
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            detail = f"this path takes {headers['Allow']}, not {request.method}; GET /openapi.json describes it"
        return problem_response(problem(error.status_code, detail, "route", request.state.request_id), headers)
