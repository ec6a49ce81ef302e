"""The HTTP interface. Routes are thin: they check, hand the work to a bounded pool, and answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError

from serving import queries
from serving.contract.preprocess import ImageRejected
from serving.models import BatchAnswer, BatchRequest, Problem, SearchAnswer, SearchRequest
from serving.pictures import picture_path
from serving.problems import TITLES, Refused, handle_errors, sentence_of
from serving.queries import QueryError, row_of
from serving.release import Release
from serving.replica import Replica
from serving.settings import ServingSettings
from serving.source import FolderSource, MlflowSource, VersionSource
from serving.uploads import read_json, read_upload

STATIC = Path(__file__).parent / "static"
FRESH_S = 60
"""How long a CDN may answer by itself. Short, as a flip does not reach it; afterwards the ETag asks whether anything changed."""
SHARED = f"public, max-age={FRESH_S}, stale-while-revalidate={FRESH_S}"
OWN = "private, no-store"

Slot = Annotated[str, Query(description="a slot instead of what is live; needs the admin token", pattern="^(blue|green|)$")]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": TITLES[status], "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status in (401, 408, 413, 415, 422, 503)
}
PHOTO_BODY = {
    "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "k": {"type": "integer", "minimum": 1, "maximum": 200},
                "candidates": {"type": "integer", "minimum": 1, "maximum": 2000},
                "filter": {"type": "string", "description": "a Filter as JSON"},
                "explain": {"type": "boolean"},
            },
        }
    },
}


def create_app(settings: ServingSettings, source: VersionSource | None = None) -> FastAPI:
    """The application; everything is opened when it starts and closed when it stops."""
    replica = Replica(settings, source or _source(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        replica.start()
        yield
        await asyncio.to_thread(replica.close)

    app = FastAPI(
        title="Vitrine", version="1", summary="A shopper's photo in, the products that match best out.", lifespan=lifespan
    )
    app.state.replica = replica
    handle_errors(app, replica.metrics)
    _search_routes(app, replica)
    _state_routes(app, replica)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _describe_search(app)
    return app


def _source(settings: ServingSettings) -> VersionSource:
    if settings.release:
        return FolderSource(Path(settings.release))
    return MlflowSource(settings.mlflow_uri, settings.cache, settings.cache_bytes)


def _describe_search(app: FastAPI) -> None:
    """Adds the bodies that routes read by hand to the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            for model in (SearchRequest, BatchRequest):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schema["components"]["schemas"] |= own.pop("$defs", {}) | {model.__name__: own}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _search_routes(app: FastAPI, replica: Replica) -> None:
    def chosen(request: Request, slot: str) -> Release:
        if slot:
            replica.check_admin(request.headers.get("authorization", ""))
        return replica.release(slot)

    async def answer(request: Request, slot: str, wanted: SearchRequest, photo: bytes | None) -> Response:
        release = chosen(request, slot)
        query = queries.Query.of(wanted, photo)
        shared = not query.personal and not slot
        headers = {"Cache-Control": SHARED if shared else OWN, "Vary": "Accept-Encoding"}
        if shared:
            headers["ETag"] = queries.etag(release, query)
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
        request_id = request.state.request_id
        found = await replica.work(lambda: queries.search(release, query, replica.limits, replica.caches, request_id))
        replica.metrics.search(found.timings_ms, found.version.index)
        headers["Server-Timing"] = ", ".join(f"{name};dur={ms}" for name, ms in found.timings_ms.items())
        return Response(found.model_dump_json(), media_type="application/json", headers=headers)

    @app.post(
        "/v1/search",
        response_model=SearchAnswer,
        responses=PROBLEMS,
        openapi_extra={"requestBody": {"required": True, "content": PHOTO_BODY}},
    )
    async def search(request: Request, slot: Slot = "") -> Response:
        """Search by a photo (multipart field `image`, or base64 in JSON), a product or a vector."""
        photo, fields = await read_upload(request, replica.limits.max_bytes, replica.settings.body_s)
        wanted = SearchRequest.model_validate(fields | ({"image": ""} if photo is not None else {}))
        return await answer(request, slot, wanted, photo)

    @app.post(
        "/v1/search/batch",
        response_model=BatchAnswer,
        responses=PROBLEMS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
            }
        },
    )
    async def batch(request: Request, slot: Slot = "") -> Response:
        """Up to 32 searches at once, all answered by one version. A search that cannot be answered does not fail the others."""
        fields = await read_json(request, replica.limits.max_bytes, replica.settings.body_s)
        searches = BatchRequest.model_validate(fields).searches
        release = chosen(request, slot)
        answers = [await replica.work(partial(one, request, release, s, n)) for n, s in enumerate(searches)]
        content = BatchAnswer(answers=answers)
        return Response(content.model_dump_json(), media_type="application/json", headers={"Cache-Control": OWN})

    def one(request: Request, release: Release, wanted: SearchRequest, number: int) -> SearchAnswer | Problem:
        request_id = f"{request.state.request_id}.{number}"
        try:
            found = queries.search(release, queries.Query.of(wanted, None), replica.limits, replica.caches, request_id)
        except (QueryError, ImageRejected, ValueError) as error:
            detail = sentence_of(error.errors()) if isinstance(error, ValidationError) else str(error)
            status = error.status if isinstance(error, QueryError) else 422
            return Problem(title=TITLES[status], status=status, detail=detail, request_id=request_id)
        replica.metrics.search(found.timings_ms, found.version.index)
        return found

    @app.get(
        "/v1/products/{product_id:path}/similar", response_model=SearchAnswer, responses={404: {"model": Problem}, **PROBLEMS}
    )
    async def similar(
        request: Request, product_id: str, k: Annotated[int, Query(ge=1, le=200)] = 20, slot: Slot = ""
    ) -> Response:
        """Products that look like one of the catalogue."""
        return await answer(request, slot, SearchRequest(product_id=product_id, k=k), None)

    @app.get("/v1/images/{product_id:path}", response_class=FileResponse, responses={404: {"model": Problem}, **PROBLEMS})
    async def picture(request: Request, product_id: str, slot: Slot = "") -> Response:
        """A product's own picture, where it is a local file."""
        release = chosen(request, slot)
        row = row_of(release.searcher, product_id)
        uri = release.searcher.features.take([row], ["image_uri"])[0]["image_uri"]  # type: ignore[arg-type]
        path = picture_path(uri, replica.settings.image_root or release.manifest.snapshot.image_root)
        if path is None:
            raise Refused(404, f"the picture of product {product_id!r} cannot be shown from here", "no_picture")
        headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, headers=headers)


def _state_routes(app: FastAPI, replica: Replica) -> None:
    @app.get("/v1/version")
    async def version() -> dict[str, Any]:
        """What is live, what each slot holds, and what went wrong if anything did."""
        state: dict[str, Any] = replica.slots.describe()
        live = replica.slots.live
        if live is not None and state["live"] is not None:
            manifest = live.manifest
            state["live"] |= {
                "version": live.version,
                "manifest": manifest.id,
                "created_at": manifest.created_at,
                "encoder": manifest.encoder.version,
                "query": manifest.encoder.query,
                "snapshot": manifest.snapshot.id,
                "products": live.searcher.live_rows,
                "gates": [g.model_dump() for g in manifest.gates],
            }
        state["notice"] = replica.settings.notice
        return state

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses=PROBLEMS)
    async def readyz() -> dict[str, str]:
        """A version is loaded, verified, and has reproduced its golden answers."""
        return {"status": "ready", "version": replica.release().version}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(replica.metrics.text(replica.slots, replica.caches), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})
