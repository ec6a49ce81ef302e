"""The HTTP application of a shard process: search for gateways, beside the state, health and metrics routes."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response

from serving.api.errors import handle_errors
from serving.api.head_requests import HeadRequests
from serving.api.metrics import RequestMetrics
from serving.api.middleware import RequestMiddleware
from serving.api.routes import state
from serving.cluster.shard_server import ShardError, ShardServer
from serving.cluster.wire import MAX_BYTES, MEDIA_TYPE, SEARCH, STATE, VECTORS
from serving.settings import ServingSettings
from serving.telemetry.tracing import make_tracing
from serving.versions.version_source import VersionSource

log = logging.getLogger(__name__)


def create_shard_app(settings: ServingSettings, source: VersionSource) -> FastAPI:
    """Builds the application of a shard process. Raises ValueError for invalid settings."""
    server = ShardServer(settings, source)
    tracing = make_tracing(settings.otel_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.close)
        await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Vitrine shard", version="1", summary="A part of an index version, for gateways.", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.server = app.state.process = server
    request_metrics = RequestMetrics(server.metrics)
    handle_errors(app, request_metrics)
    app.add_middleware(RequestMiddleware, metrics=request_metrics, tracing=tracing)
    app.add_middleware(HeadRequests)
    app.add_exception_handler(ShardError, _refuse)
    _shard_routes(app, server)
    app.include_router(state.router)
    return app


def _shard_routes(app: FastAPI, server: ShardServer) -> None:
    @app.post(SEARCH, include_in_schema=False)
    async def search(request: Request) -> Response:
        """The nearest rows of some queries in one shard."""
        return Response(await server.search(await _body(request)), media_type=MEDIA_TYPE)

    @app.post(VECTORS, include_in_schema=False)
    async def vectors(request: Request) -> Response:
        """The stored vectors of some rows."""
        return Response(await server.vectors(await _body(request)), media_type=MEDIA_TYPE)

    @app.get(STATE, include_in_schema=False)
    async def state() -> dict[str, Any]:
        """Which shards this process has, and which versions of them are ready."""
        return server.state()


async def _body(request: Request) -> bytes:
    """The whole body. Raises ShardError(413) where it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise ShardError(413, f"the question is larger than {MAX_BYTES} bytes")
    return bytes(body)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answers a ShardError in plain text and logs it: the gateway only reports that a shard is missing."""
    assert isinstance(error, ShardError)
    fields = {"method": request.method, "route": request.url.path, "status": error.status}
    detail = str(error).encode(errors="replace")  # it may quote a lone surrogate of the request
    log.info("%s %s %d: %s", request.method, request.url.path, error.status, detail.decode(), extra={"fields": fields})
    return Response(detail, error.status, media_type="text/plain")
