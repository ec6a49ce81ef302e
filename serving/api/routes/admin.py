"""Admin routes, used by promotions: sampled queries and following the aliases now; and MLflow's webhook."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from serving.api.dependencies import ReplicaDep, require_admin
from serving.api.errors import ApiError
from serving.api.openapi import problems, request_body
from serving.api.schemas import KeptSamples, SlotsState
from serving.contract.webhook_signature import InvalidSignature, verify_signature

MLFLOW_HOOK = "/v1/hooks/mlflow"
MESSAGE = request_body(
    {"type": "object", "description": "MLflow's; see mlflow.entities.webhook"},
    example={
        "entity": "model_version_alias",
        "action": "created",
        "data": {"name": "product-index", "alias": "live", "version": "7"},
    },
)

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=2000, description="at most so many, the newest first")]
Fingerprint = Annotated[str, Query(pattern="^[0-9a-f]{64}$|^$", description="only vectors of this query encoder")]
Again = Annotated[str, Query(max_length=100, description="a version that is loaded again at once if it failed; empty: none")]


@router.get("/v1/samples", response_model=KeptSamples, responses=problems(401, 422), dependencies=[Depends(require_admin)])
async def samples(replica: ReplicaDep, limit: Limit = 200, fingerprint: Fingerprint = "") -> dict[str, Any]:
    """Sampled real queries: vectors (base64 of float32) and the sha256 of photos; photos only where a setting keeps them."""
    return {"samples": [s.wire() for s in replica.deps.samples.newest(limit, fingerprint)]}


@router.post("/v1/follow", response_model=SlotsState, responses=problems(401), dependencies=[Depends(require_admin)])
async def follow(replica: ReplicaDep, again: Again = "") -> dict[str, Any]:
    """Looks at the aliases now rather than at the next poll; answers what /v1/version answers of the slots. A version that failed is
    loaded again after its pause (`retry_s`), or now where it is named."""
    await asyncio.to_thread(replica.slots.follow, again)
    return replica.slots.describe()


@router.post(MLFLOW_HOOK, response_model=SlotsState, responses=problems(401, 408, 413, 503), openapi_extra=MESSAGE)
async def mlflow_webhook(request: Request, replica: ReplicaDep) -> dict[str, Any]:
    """MLflow's signed message that an alias moved. It only makes this replica look at the aliases: what it says is not believed."""
    try:
        verify_signature(request.headers, await request.body(), replica.settings.webhook_secret, time.time())
    except InvalidSignature as error:
        raise ApiError(401, str(error), "signature") from None
    await asyncio.to_thread(replica.slots.follow)
    return replica.slots.describe()
