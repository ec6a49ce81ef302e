"""The HTTP interface. Routes are thin: they check, hand the work to a bounded pool, and answer."""

import asyncio
import hmac
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from serving.cache import Cache
from serving.contract.preprocess import ImageLimits, ImageRejected
from serving.metrics import Metrics
from serving.models import Filter, Problem, SearchAnswer, SearchRequest
from serving.pictures import picture_path
from serving.queries import QueryError, row_of, search
from serving.release import Release
from serving.settings import ServingSettings
from serving.slots import SLOTS, Slots
from serving.source import FolderSource, MlflowSource, VersionSource
from serving.uploads import read_upload

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
EMBEDDING_TTL_S = 24 * 3600.0
EMBEDDING_ENTRIES = 10_000


class Refused(Exception):
    """A request answered with a problem: status, one sentence, and a short reason code."""

    def __init__(self, status: int, detail: str, reason: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Replica:
    """What one serving process holds: its slots, its workers, its caches and its counters."""

    def __init__(self, settings: ServingSettings, source: VersionSource) -> None:
        self.settings = settings
        self.slots = Slots(source, settings.threads)
        self.metrics = Metrics()
        self.vectors = Cache(EMBEDDING_ENTRIES, EMBEDDING_TTL_S)
        self.limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self.pool = ThreadPoolExecutor(settings.workers, "search")
        self.waiting = 0
        self.stop = threading.Event()

    def watch(self) -> None:
        """Follows the aliases until the process stops."""
        while not self.stop.is_set():
            self.slots.refresh()
            self.stop.wait(self.settings.poll_s)

    async def work(self, call: Callable[[], Any]) -> Any:
        """Runs a call in the pool; refuses when too many wait already."""
        if self.waiting >= self.settings.workers + self.settings.queue:
            raise Refused(503, "too many searches are waiting; try again in a second", "overloaded", {"Retry-After": "1"})
        self.waiting += 1
        self.metrics.busy.set(self.waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, call)
        finally:
            self.waiting -= 1
            self.metrics.busy.set(self.waiting)

    def release(self, slot: str = "") -> Release:
        """The release to answer with. Raises Refused(503) when there is none."""
        found = self.slots.get(slot)
        if found is None:
            what = f"slot {slot} holds no version that is ready" if slot else "no index version is live on this replica yet"
            raise Refused(503, what, "not_ready", {"Retry-After": "5"})
        return found

    def check_admin(self, authorization: str) -> None:
        """Raises Refused unless the bearer token is the admin token (compared in constant time)."""
        token = authorization.removeprefix("Bearer ").strip()
        wanted = self.settings.admin_token
        if not wanted or not hmac.compare_digest(token.encode(), wanted.encode()):
            raise Refused(401, "this needs the admin token: Authorization: Bearer …", "unauthorized")


def create_app(settings: ServingSettings, source: VersionSource | None = None) -> FastAPI:
    """The application; everything is opened when it starts and closed when it stops."""
    replica = Replica(settings, source or _source(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watcher = threading.Thread(target=replica.watch, name="watch", daemon=True)
        watcher.start()
        yield
        replica.stop.set()
        await asyncio.to_thread(watcher.join, 10)
        replica.pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Vitrine",
        version="1",
        summary="A shopper's photo in, the products that match best out.",
        lifespan=lifespan,
        responses={422: {"model": Problem, "description": "The request cannot be answered as it is"}},
    )
    app.state.replica = replica
    _handle_errors(app, replica)
    _search_routes(app, replica)
    _state_routes(app, replica)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _source(settings: ServingSettings) -> VersionSource:
    return FolderSource(Path(settings.release)) if settings.release else MlflowSource(settings.mlflow_uri, settings.cache)


def _search_routes(app: FastAPI, replica: Replica) -> None:
    Slot = Annotated[str, Query(description="a slot instead of what is live; needs the admin token", pattern="^(blue|green|)$")]

    async def answer(request: Request, slot: str, wanted: SearchRequest, photo: bytes | None) -> Response:
        if slot:
            replica.check_admin(request.headers.get("authorization", ""))
        release = replica.release(slot)
        request_id = request.state.request_id
        call = lambda: search(release, wanted, photo, replica.limits, replica.vectors, request_id)  # noqa: E731
        found: SearchAnswer = await replica.work(call)
        replica.metrics.search(found.timings_ms, found.version.index, found.cached, photo is not None or wanted.image is not None)
        timing = ", ".join(f"{name};dur={ms}" for name, ms in found.timings_ms.items())
        return Response(found.model_dump_json(), media_type="application/json", headers={"Server-Timing": timing})

    body = {
        "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "k": {"type": "integer"},
                    "candidates": {"type": "integer"},
                    "filter": {"type": "string", "description": "a Filter as JSON"},
                    "explain": {"type": "boolean"},
                },
            }
        },
    }

    @app.post("/v1/search", response_model=SearchAnswer, openapi_extra={"requestBody": {"required": True, "content": body}})
    async def search_route(request: Request, slot: Slot = "") -> Response:
        """Search by a photo (multipart field `image`, or base64 in JSON), a product or a vector."""
        photo, fields = await read_upload(request, replica.limits.max_bytes)
        wanted = SearchRequest.model_validate(fields | ({"image": ""} if photo is not None else {}))
        return await answer(request, slot, wanted, photo)

    @app.get("/v1/products/{product_id}/similar", response_model=SearchAnswer)
    async def similar(
        request: Request, product_id: str, k: Annotated[int, Query(ge=1, le=200)] = 20, slot: Slot = ""
    ) -> Response:
        """Products that look like one of the catalogue."""
        return await answer(request, slot, SearchRequest(product_id=product_id, k=k), None)

    @app.get("/v1/images/{product_id}", response_class=FileResponse)
    async def picture(product_id: str, authorization: Annotated[str, Header()] = "", slot: Slot = "") -> Response:
        """A product's own picture, where it is a local file."""
        release = replica.release(slot)
        features = release.searcher.features
        uri = features.take([row_of(features, product_id)], ["image_uri"])[0]["image_uri"]  # type: ignore[arg-type]
        path = picture_path(uri, replica.settings.image_root or release.manifest.snapshot.image_root)
        if path is None:
            raise Refused(404, f"the picture of product {product_id!r} cannot be shown from here", "no_picture")
        return FileResponse(path, headers={"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"})


def _state_routes(app: FastAPI, replica: Replica) -> None:
    @app.get("/v1/version")
    async def version() -> dict[str, Any]:
        """What is live, what each slot holds, and what went wrong if anything did."""
        state: dict[str, Any] = replica.slots.describe()
        live = replica.slots.live
        if live is not None:
            manifest = live.manifest
            state["live"] |= {
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

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """A version is loaded, verified, and has reproduced its golden answers."""
        return {"status": "ready", "version": replica.release().version}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        for name in SLOTS:
            slot = replica.slots.slots[name]
            if slot.version:
                is_live = replica.slots.live_slot == name
                replica.metrics.live.labels(slot.version, name).set(int(is_live))
        return Response(replica.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


def _handle_errors(app: FastAPI, replica: Replica) -> None:
    """Every error becomes problem+json with one sentence; every answer carries its request id."""

    def problem(
        request: Request, status: int, detail: str, reason: str = "", headers: dict[str, str] | None = None
    ) -> JSONResponse:
        titles = {
            401: "Unauthorized",
            404: "Not found",
            413: "Too large",
            415: "Not supported",
            422: "Cannot be answered",
            503: "Not now",
        }
        content = Problem(
            title=titles.get(status, "Error"), status=status, detail=detail, reason=reason,
            request_id=getattr(request.state, "request_id", ""),
        )  # fmt: skip
        return JSONResponse(content.model_dump(), status, headers=headers, media_type="application/problem+json")

    @app.middleware("http")
    async def with_request_id(request: Request, call_next: Callable[[Request], Any]) -> Response:
        request.state.request_id = uuid.uuid4().hex[:16]
        response: Response = await call_next(request)
        response.headers["X-Request-Id"] = request.state.request_id
        route = request.scope.get("route")
        replica.metrics.requests.labels(getattr(route, "path", "other"), str(response.status_code)).inc()
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(request, error.status, str(error), error.reason, error.headers)

    @app.exception_handler(QueryError)
    async def query_error(request: Request, error: QueryError) -> JSONResponse:
        return problem(request, error.status, str(error), "query")

    @app.exception_handler(ImageRejected)
    async def rejected(request: Request, error: ImageRejected) -> JSONResponse:
        replica.metrics.rejected.labels(error.reason).inc()
        status = {"too_many_bytes": 413, "too_many_pixels": 413, "format": 415, "not_an_image": 415}.get(error.reason, 422)
        return problem(request, status, str(error), error.reason)

    @app.exception_handler(ValidationError)
    @app.exception_handler(ValueError)
    async def invalid(request: Request, error: ValueError) -> JSONResponse:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            return problem(
                request, 422, f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}", "request"
            )
        return problem(request, 422, str(error), "request")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return problem(request, error.status_code, str(error.detail), "", dict(error.headers or {}))


__all__ = ["Filter", "create_app"]
