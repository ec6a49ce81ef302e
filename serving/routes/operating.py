"""What a promotion asks of a replica, with the admin token: sampled queries, and to look at the aliases now; and what MLflow tells."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from serving.contract.signed import NotSigned, check_signed
from serving.problems import Refused
from serving.replica import Replica
from serving.routes.described import ADMIN, body, problems
from serving.states import KeptSamples, SlotsState

Limit = Annotated[int, Query(ge=1, le=2000, description="at most so many, the newest first")]
Fingerprint = Annotated[str, Query(pattern="^[0-9a-f]{64}$|^$", description="only vectors of this query encoder")]

SLOTS: dict[int | str, dict[str, Any]] = {200: {"model": SlotsState}}
SAMPLES: dict[int | str, dict[str, Any]] = {200: {"model": KeptSamples}}
MLFLOW_HOOK = "/v1/hooks/mlflow"
MESSAGE = {
    "application/json": {
        "schema": {"type": "object", "description": "MLflow's; see mlflow.entities.webhook"},
        "example": {
            "entity": "model_version_alias",
            "action": "created",
            "data": {"name": "product-index", "alias": "live", "version": "7"},
        },
    }
}


def operating_routes(app: FastAPI, replica: Replica) -> None:
    def admit(request: Request) -> None:
        replica.access.check_admin(request.headers.get("authorization", ""))

    @app.get("/v1/samples", response_model=None, responses=SAMPLES | problems(401, 422), openapi_extra=ADMIN)
    async def samples(request: Request, limit: Limit = 200, fingerprint: Fingerprint = "") -> dict[str, Any]:
        """Sampled real queries: vectors (base64 of float32) and the sha256 of photos; photos only where a setting keeps them."""
        admit(request)
        return {"samples": [s.wire() for s in replica.means.samples.newest(limit, fingerprint)]}

    @app.post("/v1/follow", response_model=None, responses=SLOTS | problems(401), openapi_extra=ADMIN)
    async def follow(request: Request) -> dict[str, Any]:
        """Looks at the aliases now rather than at the next poll; answers what /v1/version answers of the slots."""
        admit(request)
        await asyncio.to_thread(replica.slots.follow)
        return replica.slots.describe()

    @app.post(MLFLOW_HOOK, response_model=None, responses=SLOTS | problems(401, 408, 413), openapi_extra=body(MESSAGE))
    async def told(request: Request) -> dict[str, Any]:
        """MLflow's signed message that an alias moved. It only makes this replica look at the aliases: what it says is not believed."""
        content = await request.body()
        try:
            check_signed(request.headers, content, replica.settings.webhook_secret, time.time())
        except NotSigned as error:
            raise Refused(401, str(error), "signature") from None
        await asyncio.to_thread(replica.slots.follow)
        return replica.slots.describe()
