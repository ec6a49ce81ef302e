"""HTTP routes of the board. Every route authorises with Airflow; actions trigger DAGs; rules live in `tasks`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from airflow.api_fastapi.app import get_auth_manager
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugins.board.access import ACTIONS, Reader, can_act, refuse_cross_site, require_operator, require_reader, token_of
from plugins.board.airflow_api import AirflowClient
from plugins.board.dags import DAGS
from serving.contract.files import ContractError
from tasks.board.board_data import Board
from tasks.board.changes import ChangesBoard
from tasks.errors import VitrineError

STATIC = Path(__file__).parent / "static"
FILES = {
    "board.css": "text/css", "board.js": "text/javascript", "draw.js": "text/javascript", "embedding.js": "text/javascript",
    "changes.js": "text/javascript", "gates.js": "text/javascript", "runs.js": "text/javascript", "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}  # fmt: skip
RUNS = {"promote_index": 6, "rollback_index": 6, "rebuild_index": 6, "refresh_index": 6, "train_encoder": 3, "watch_quality": 3}
"""How many runs of a DAG the page lists: of the others the newest, as one that runs every 15 minutes would crowd the rest out."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}

VersionNumber = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class PromoteRequest(BaseModel):
    """The version to promote."""

    version: VersionNumber


class RollbackRequest(BaseModel):
    """The version the page showed as the rollback target, so that a second press is refused; "" for the previous version."""

    version: VersionNumber | Literal[""] = ""


def create_app(board: Board, changes: ChangesBoard) -> FastAPI:
    """The FastAPI application. Nothing is opened before the first request that needs it."""
    app = FastAPI(
        title="Vitrine release board", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(require_reader)]
    )
    _page_routes(app)
    _data_routes(app, board, changes)
    _action_routes(app, board)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        """Errors as JSON with one sentence; browsers without a session are redirected to the login page."""
        if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)))
        return JSONResponse({"detail": error.detail}, error.status_code)

    @app.exception_handler(VitrineError)
    @app.exception_handler(ContractError)
    async def not_possible(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    return app


def _page_routes(app: FastAPI) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "board.html", media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def static(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, f"the board has no file {name!r}")
        return FileResponse(STATIC / name, media_type=FILES[name])


def _data_routes(app: FastAPI, board: Board, changes: ChangesBoard) -> None:
    @app.get("/data")
    def data(user: Reader) -> Response:
        """Versions, slots, replicas, charts, lineage of the live version, and the actions this user may perform."""
        found = board.read(datetime.now(UTC)) | {
            "user": user.get_name(),
            "may": {action: can_act(user, action) for action in ACTIONS},
            "dags": ACTIONS,
        }
        return _json(found)

    @app.get("/changes")
    def waiting_changes() -> Response:
        """Pending changes, dead letters and quarantined products; `problem` replaces what cannot be read."""
        return _json(changes.read())

    @app.get("/quarantine.csv")
    def quarantine_list() -> Response:
        """All quarantined products with ids and reasons, as a file."""
        return _csv(changes.quarantine_csv(), "quarantine.csv")

    @app.get("/dead-letters.csv")
    def dead_letter_list() -> Response:
        """All dead letters with their messages and reasons, as a file."""
        return _csv(changes.dead_letters_csv(), "dead-letters.csv")

    @app.get("/runs")
    async def runs(request: Request) -> Response:
        """The newest runs, their pending approvals, and when each DAG runs next, as far as this user may see them."""
        airflow = AirflowClient(token_of(request))
        found = [run for dag in DAGS for run in await airflow.runs(dag, RUNS.get(dag, 1))]
        for run in found:
            run["waiting"] = await airflow.pending_inputs(run["dag"], run["run"]) if run["state"] == "running" else []
        newest = sorted(found, key=lambda r: r["began"] or "", reverse=True)
        return _json({"runs": newest, "schedule": await airflow.schedule(DAGS)})

    @app.get("/lineage/{version}")
    def lineage(version: VersionNumber) -> Response:
        """The lineage of one version."""
        return _json({"lineage": board.lineage(version)})

    @app.get("/trace")
    def trace(product: Annotated[str, Query(min_length=1, max_length=200)], version: str = "") -> Response:
        """The lineage of one product in a version (default: live)."""
        from tasks.release.trace import trace_product

        steps = trace_product(board.registry, product, version)
        return _json({"steps": [{"what": what, "name": name} for what, name in steps]})


def _action_routes(app: FastAPI, board: Board) -> None:
    async def start(request: Request, action: str, conf: dict[str, Any], note: str) -> Response:
        airflow, dag = AirflowClient(token_of(request)), ACTIONS[action]
        active = next((r for r in await airflow.runs(dag, 1) if r["state"] in ("queued", "running")), None)
        if active is not None:
            raise HTTPException(409, f"{dag} is under way already, started by {active['by']}: wait for run {active['run']}")
        return _json({"dag": dag, "run": await airflow.trigger(dag, conf, note)}, 202)

    def checked(version: str) -> str:
        from tasks.release.gates.recorded_verdict import why_not_promotable

        registry = board.registry
        if why := why_not_promotable(registry.version("product-index", version), registry.index_manifest(version)):
            raise HTTPException(409, why)
        return version

    acts = [Depends(refuse_cross_site)]

    @app.post("/actions/promote", dependencies=[*acts, Depends(require_operator("promote"))])
    async def promote(request: Request, wanted: PromoteRequest) -> Response:
        """Triggers `promote_index` for one version as this user."""
        from starlette.concurrency import run_in_threadpool

        version = await run_in_threadpool(checked, wanted.version)
        return await start(request, "promote", {"version": version}, f"promote index version {version}, from the release board")

    @app.post("/actions/rollback", dependencies=[*acts, Depends(require_operator("rollback"))])
    async def rollback(request: Request, wanted: RollbackRequest) -> Response:
        """Triggers `rollback_index` as this user."""
        to = f" to index version {wanted.version}" if wanted.version else ""
        return await start(request, "rollback", {"version": wanted.version}, f"roll back{to}, from the release board")

    @app.post("/actions/rebuild", dependencies=[*acts, Depends(require_operator("rebuild"))])
    async def rebuild(request: Request) -> Response:
        """Triggers `rebuild_index` as this user."""
        return await start(request, "rebuild", {}, "rebuild, from the release board")


def _csv(text: str, name: str) -> Response:
    return Response(text, media_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content, default=str), status, media_type="application/json")
