"""The application: what is opened when it starts and closed when it stops, and its routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from serving.body_limits import BodyLimits
from serving.contract.signed import LONGEST
from serving.fetching import Fetcher
from serving.problems import handle_errors
from serving.replica import Replica
from serving.requests import RequestMiddleware
from serving.routes import batch, operating, pictures, search
from serving.routes.openapi import describe
from serving.routes.operating import MLFLOW_HOOK
from serving.routes.state import state_routes
from serving.settings import ROLES, ServingSettings
from serving.shards.app import create_shard_app
from serving.source import MlflowSource, VersionSource, release_in
from serving.uploads import body_limit


def create_app(settings: ServingSettings, source: VersionSource | None = None, fetcher: Fetcher | None = None) -> FastAPI:
    """The application; everything is opened when it starts and closed when it stops. Raises ValueError for settings that do not fit.

    `source` and `fetcher` replace what the settings name. A process of the role shard is another application: serving/shards/app.py.
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
    app.state.replica = replica
    handle_errors(app, replica.metrics)
    app.add_middleware(RequestMiddleware, metrics=replica.metrics, tracing=replica.tracing)
    app.add_middleware(
        BodyLimits, max_bytes=body_limit(settings.max_image_bytes), limit_s=settings.body_s, places=replica.uploads,
        by_path={MLFLOW_HOOK: LONGEST},
    )  # fmt: skip
    for routes in (search, batch, pictures, operating):
        app.include_router(routes.router)
    app.mount("/static", StaticFiles(directory=pictures.STATIC), name="static")
    state_routes(app, replica.slots, replica.describe, replica.metrics_text)
    describe(app)
    return app


def _source(settings: ServingSettings) -> VersionSource:
    if settings.release:
        return release_in(Path(settings.release))
    return MlflowSource(settings.mlflow_uri, settings.cache, settings.cache_bytes)
