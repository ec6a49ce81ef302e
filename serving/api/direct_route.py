"""The busiest route, called without FastAPI's stack.

FastAPI's middleware, routing and dependencies took 0.25 to 0.4 ms of processor time of a search: with the route in it, 8 clients had
0.65 (vectors) and 0.72 (photos) of the throughput of commit 8710f00, with its ten dependencies read by its function 0.75 and 0.79,
and called from here 0.85 and 0.86 (docs/decisions/0076).
"""

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.errors import EXPECTED_ERRORS, error_response
from serving.api.metrics import RequestMetrics


class DirectRoute:
    """ASGI middleware, the innermost: calls the function of `route`, from a request to a response; the rest passes by.

    FastAPI describes the route, and would answer the same without this middleware.
    """

    def __init__(self, app: ASGIApp, route: APIRoute, metrics: RequestMetrics) -> None:
        self.app, self.route, self.metrics = app, route, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.route.path or scope["method"] not in self.route.methods:
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route
        try:
            response = await self.route.endpoint(Request(scope, receive, send))
        except EXPECTED_ERRORS as error:
            response = error_response(error, scope["state"]["request_id"], self.metrics)
        await response(scope, receive, send)
