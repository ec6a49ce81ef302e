"""The HTTP interface of a shard process: what gateways ask, below FastAPI's own routes for people, probes and Prometheus."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import handle_errors
from serving.routes.state import state_routes
from serving.settings import ServingSettings
from serving.shards.holder import Holder, NotAnswered
from serving.shards.wire import KIND, MOST_BYTES, SEARCH, STATE, VECTORS
from serving.source import VersionSource
from serving.tracing import tracing_to


def create_shard_app(settings: ServingSettings, source: VersionSource) -> FastAPI:
    """The application of a shard process. Raises ValueError for settings that do not fit."""
    holder = Holder(settings, source)
    tracing = tracing_to("")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        holder.start()
        yield
        await asyncio.to_thread(holder.close)

    app = FastAPI(
        title="Vitrine shard", version="1", summary="A part of an index version, for gateways.", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.holder = holder
    handle_errors(app, holder.metrics, tracing)
    app.add_middleware(Questions, holder=holder)  # added last: it comes before what costs time
    state_routes(
        app,
        holder.slots,
        lambda: {"role": "shard", "shards": holder.shards},
        lambda: holder.metrics.text(holder.slots),
    )
    return app


class Questions:
    """ASGI middleware that answers a gateway's questions itself and leaves everything else to the application."""

    def __init__(self, app: ASGIApp, holder: Holder) -> None:
        self.app, self.holder = app, holder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or path not in (SEARCH, VECTORS, STATE):
            await self.app(scope, receive, send)
            return
        kind, status = KIND, 200
        try:
            if path == STATE:
                body, kind = json.dumps(self.holder.state()).encode(), "application/json"
            elif scope["method"] != "POST":
                raise NotAnswered(405, "ask with POST")
            else:
                answer = self.holder.search if path == SEARCH else self.holder.vectors
                body = await answer(await _whole(receive))
        except NotAnswered as refused:
            status, kind, body = refused.status, "text/plain; charset=utf-8", str(refused).encode()
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
