"""State routes of every process, replica or shard: version, liveness, readiness and metrics."""

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response

from serving.api.errors import ApiError
from serving.api.openapi import example, problems
from serving.api.schemas import ReplicaState
from serving.telemetry.metrics import Metrics
from serving.versions.slots import Slots

router = APIRouter()


class Process(Protocol):
    """A serving process, as `app.state.process`. `describe` gives its own part of /v1/version."""

    slots: Slots[Any]
    metrics: Metrics
    draining: bool
    """Told to end: it still answers, and is not ready."""

    def describe(self) -> dict[str, Any]: ...


async def get_process(request: Request) -> Process:
    """The process of this application."""
    process: Process = request.app.state.process
    return process


ProcessDep = Annotated[Process, Depends(get_process)]


@router.get("/v1/version", response_model=None, responses={200: {"model": ReplicaState}})
async def version(process: ProcessDep) -> dict[str, Any]:
    """What is live, what each slot holds, and why the version that the alias `live` names does not serve, if it does not."""
    state: dict[str, Any] = process.slots.describe()
    live = process.slots.live
    if live is not None and state["live"] is not None:
        manifest = live.manifest
        state["live"] |= {
            "version": live.version,
            "manifest": manifest.id,
            "created_at": manifest.created_at,
            "encoder": manifest.encoder.version,
            "words": getattr(live, "text_encoder", None) is not None,  # a shard has no encoder
            "query": manifest.encoder.query,
            "snapshot": manifest.snapshot.id,
            "products": live.products,
            "queries": manifest.queries.model_dump() if manifest.queries else None,
            "gates": [g.model_dump() for g in manifest.gates],
        }
    return state | process.describe()


@router.get("/healthz", responses=example({"status": "alive"}))
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/readyz", responses=example({"status": "ready", "version": "7"}) | problems(503))
async def readyz(process: ProcessDep) -> dict[str, str]:
    """A version is loaded, verified, and has reproduced its golden answers; the process was not told to end."""
    live = process.slots.live
    if process.draining:
        raise ApiError(503, "this process was told to end", "not_ready", {"Retry-After": "5"})
    why = process.slots.not_live_reason() if live is None else live.away()
    if live is None or why:
        raise ApiError(503, why, "not_ready", {"Retry-After": "5"})
    return {"status": "ready", "version": live.version}


@router.get("/metrics", response_class=PlainTextResponse, responses=example("vitrine_flips 3.0\n", "text/plain"))
async def metrics(process: ProcessDep) -> Response:
    """Prometheus metrics."""
    return Response(process.metrics.text(), media_type="text/plain; version=0.0.4")
