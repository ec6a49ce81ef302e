"""What a replica says of itself: its version, whether it is alive and ready, and its metrics."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from serving.replica import Replica
from serving.routes.described import problems


def state_routes(app: FastAPI, replica: Replica) -> None:
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

    @app.get("/readyz", responses=problems(503))
    async def readyz() -> dict[str, str]:
        """A version is loaded, verified, and has reproduced its golden answers."""
        return {"status": "ready", "version": replica.release().version}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        content = replica.metrics.text(replica.slots, replica.means, replica.live_recall.told())
        return Response(content, media_type="text/plain; version=0.0.4")
