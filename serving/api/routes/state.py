"""State routes of every process: version, liveness, readiness and metrics."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from serving.api.errors import ApiError
from serving.api.openapi import example, problems
from serving.api.schemas import ReplicaState
from serving.versions.slots import Slots


def state_routes(
    app: FastAPI, slots: Slots[Any], describe: Callable[[], dict[str, Any]], metrics_text: Callable[[], bytes]
) -> None:
    """Adds the state routes. `describe` gives the process's own part of /v1/version; `metrics_text` the Prometheus text."""

    @app.get("/v1/version", response_model=None, responses={200: {"model": ReplicaState}})
    async def version() -> dict[str, Any]:
        """What is live, what each slot holds, and why the version that the alias `live` names does not serve, if it does not."""
        state: dict[str, Any] = slots.describe()
        live = slots.live
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
                "gates": [g.model_dump() for g in manifest.gates],
            }
        return state | describe()

    @app.get("/healthz", responses=example({"status": "alive"}))
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses=example({"status": "ready", "version": "7"}) | problems(503))
    async def readyz() -> dict[str, str]:
        """A version is loaded, verified, and has reproduced its golden answers."""
        if slots.live is None:
            raise ApiError(503, slots.not_live_reason(), "not_ready", {"Retry-After": "5"})
        return {"status": "ready", "version": slots.live.version}

    @app.get("/metrics", response_class=PlainTextResponse, responses=example("vitrine_flips 3.0\n", "text/plain"))
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(metrics_text(), media_type="text/plain; version=0.0.4")
