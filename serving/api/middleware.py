"""ASGI middleware for every request: request id, metrics, access log, trace, and the 500 of unexpected errors."""

import logging
import re
import time
from secrets import token_hex

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import internal_problem, problem_response
from serving.api.metrics import RequestMetrics
from serving.telemetry import logs
from serving.telemetry.tracing import RequestTrace, Tracing

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Status counted when the client disconnects before the answer (nginx's 499); never sent."""
QUIET_ROUTES = ("/healthz", "/readyz", "/metrics", "/static", "/v1/version", "/shard/state")
"""Routes polled every few seconds: counted, but neither logged nor traced."""
SHARD_ROUTES = "/shard/"
"""Requests of gateways to shards: traced but not logged, since the gateway logs its own requests."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Gives every answer an `X-Request-Id` (the caller's where it is a plain word); counts, logs and traces it."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, tracing: Tracing) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        supplied = headers.get("x-request-id", "")
        request_id = supplied if REQUEST_ID.fullmatch(supplied) else token_hex(8)
        scope.setdefault("state", {}).update(request_id=request_id, phases=[])
        logs.request_id.set(request_id)
        trace, began = self.tracing.begin(headers, time.time()), time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:  # nobody is there to be answered, and nothing of ours is wrong
            status = status or CLIENT_CLOSED_REQUEST
        except Exception as error:
            found = internal_problem(error, request_id)
            if status:
                raise
            await problem_response(found)(scope, receive, send_with_id)
        finally:
            self._record(scope, trace, status, time.perf_counter() - began)

    def _record(self, scope: Scope, trace: RequestTrace, status: int, took_s: float) -> None:
        """Counts, logs and traces a finished request."""
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.count(route, status, took_s)
        if route in QUIET_ROUTES:
            return
        if not route.startswith(SHARD_ROUTES):
            fields = {"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * took_s, 2)}
            log.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})
        attributes = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
        attributes["vitrine.request_id"] = scope["state"]["request_id"]
        trace.end(f"{scope['method']} {route}", took_s, attributes, scope["state"]["phases"])
