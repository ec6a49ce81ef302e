"""The FastAPI application factory: lifespan, middleware, error handlers and routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from serving.api.body_limits import BodyLimits
from serving.api.direct_route import DirectRoute
from serving.api.errors import handle_errors
from serving.api.head_requests import HeadRequests
from serving.api.middleware import RequestMiddleware
from serving.api.openapi import describe
from serving.api.replica import Replica
from serving.api.routes import admin as operating
from serving.api.routes import batch, pictures, search, state
from serving.api.routes.admin import MLFLOW_HOOK
from serving.api.shard_app import create_shard_app
from serving.api.uploads import body_limit
from serving.contract.binding import BindingPolicy
from serving.contract.webhook_signature import MAX_BODY_BYTES
from serving.search.image_fetch import Fetcher
from serving.settings import ROLES, ServingSettings
from serving.versions.version_source import MlflowSource, VersionSource, exported_release


def create_app(settings: ServingSettings, source: VersionSource | None = None, fetcher: Fetcher | None = None) -> FastAPI:
    """Builds the application; its lifespan starts and closes the replica. Raises ValueError for invalid settings.

    `source` and `fetcher` replace those of the settings. The role shard has its own application: serving/api/shard_app.py.
    """
    if settings.role not in ROLES:
        raise ValueError(f"VITRINE_ROLE={settings.role!r} is none of {', '.join(ROLES)}")
    if settings.role == "shard":
        return create_shard_app(settings, source or _source(settings))
    replica = Replica(settings, source or _source(settings), fetcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        replica.start()
        yield
        await asyncio.to_thread(replica.close)

    app = FastAPI(
        title="Vitrine", version="1", summary="A shopper's photo in, the products that match best out.", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.replica = app.state.process = replica
    handle_errors(app, replica.request_metrics)
    app.add_middleware(DirectRoute, route=cast(APIRoute, search.posted.routes[0]), metrics=replica.request_metrics)
    app.add_middleware(RequestMiddleware, metrics=replica.request_metrics, tracing=replica.tracing)
    app.add_middleware(
        BodyLimits, max_bytes=body_limit(settings.max_image_bytes), limit_s=settings.body_s, places=replica.uploads,
        by_path={MLFLOW_HOOK: MAX_BODY_BYTES},
    )  # fmt: skip
    app.add_middleware(HeadRequests)
    for router in (search.posted, search.router, batch.router, pictures.router, operating.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=pictures.STATIC), name="static")
    app.include_router(state.router)
    describe(app)
    return app


def _source(settings: ServingSettings) -> VersionSource:
    trust = BindingPolicy.load(settings.verify_key, settings.require_bound)
    if settings.release:
        return exported_release(Path(settings.release), trust)
    return MlflowSource(settings.mlflow_uri, settings.cache, settings.cache_bytes, trust)
