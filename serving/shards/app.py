"""The HTTP interface of a shard process: what gateways ask, below FastAPI's own routes for people, probes and Prometheus."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import logs
from serving.problems import handle_errors
from serving.requests import Requests
from serving.routes.state import state_routes
from serving.settings import ServingSettings
from serving.shards.holder import Holder, NotAnswered
from serving.shards.wire import KIND, MOST_BYTES, SEARCH, STATE, VECTORS
from serving.source import VersionSource
from serving.tracing import Tracing, tracing_to

log = logging.getLogger(__name__)


def create_shard_app(settings: ServingSettings, source: VersionSource) -> FastAPI:
    """The application of a shard process. Raises ValueError for settings that do not fit."""
    holder = Holder(settings, source)
    tracing = tracing_to(settings.otel_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        holder.start()
        yield
        await asyncio.to_thread(holder.close)
        await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Vitrine shard", version="1", summary="A part of an index version, for gateways.", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.holder = holder
    handle_errors(app, holder.metrics)
    app.add_middleware(Requests, metrics=holder.metrics, tracing=tracing)
    app.add_middleware(Questions, holder=holder, tracing=tracing)  # added last: it comes before what costs time
    state_routes(
        app,
        holder.slots,
        lambda: {"role": "shard", "shards": holder.shards},
        lambda: holder.metrics.text(holder.slots),
    )
    return app


class Questions:
    """ASGI middleware that answers a gateway's questions itself and leaves everything else to the application.

    A question is traced below the gateway's span, and logged where it is refused: the gateway logs every request already.
    """

    def __init__(self, app: ASGIApp, holder: Holder, tracing: Tracing) -> None:
        self.app, self.holder, self.tracing = app, holder, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or path not in (SEARCH, VECTORS, STATE):
            await self.app(scope, receive, send)
        elif path == STATE:
            await _send(send, 200, "application/json", json.dumps(self.holder.state()).encode())
        else:
            headers = Headers(scope=scope)
            logs.request_id.set(headers.get("x-request-id", ""))
            traced, began, status = self.tracing.begin(headers, time.time()), time.perf_counter(), 500
            try:
                status, kind, body = await self._answer(scope, receive)
                await _send(send, status, kind, body)
            finally:
                told = {"http.request.method": scope["method"], "http.route": path, "http.response.status_code": status}
                told["vitrine.request_id"] = logs.request_id.get()
                traced.end(f"{scope['method']} {path}", time.perf_counter() - began, told)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        """Status, kind and body of the answer to a question."""
        path = scope["path"]
        try:
            if scope["method"] != "POST":
                raise NotAnswered(405, "ask with POST")
            answer = self.holder.search if path == SEARCH else self.holder.vectors
            return 200, KIND, await answer(await _whole(receive))
        except NotAnswered as refused:
            fields = {"method": scope["method"], "route": path, "status": refused.status}
            log.info("%s %s %d: %s", scope["method"], path, refused.status, refused, extra={"fields": fields})
            return refused.status, "text/plain; charset=utf-8", str(refused).encode()


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _whole(receive: Receive) -> bytes:
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise NotAnswered(400, "the gateway went away")
        piece = message.get("body", b"")
        size += len(piece)
        if size > MOST_BYTES:
            raise NotAnswered(413, f"the question is larger than {MOST_BYTES} bytes")
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)
