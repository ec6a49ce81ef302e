"""FastAPI dependencies of the routes: the replica, authentication, the chosen release, and the search call."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Path, Query, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import WithJsonSchema

from serving.api import openapi
from serving.api.client_address import client_address
from serving.api.replica import Replica
from serving.api.uploads import json_object, validated
from serving.contract.manifest import SLOTS
from serving.invalid_request import InvalidRequest
from serving.ranking.filters import Filter, FilterError
from serving.search import query as queries
from serving.search.schemas import SearchAnswer, SearchRequest
from serving.telemetry.timing import Deadline, Timings
from serving.versions.release import Release

LARGE = 1 << 20
"""Photos from this many bytes are decoded and hashed in a thread: 10 MB would block the event loop for 0.1 s."""

API_KEY = APIKeyHeader(name="X-Api-Key", scheme_name="key", description="where this replica asks for keys", auto_error=False)
BEARER = HTTPBearer(scheme_name="admin", description="the admin token, for `slot` and for operating a replica", auto_error=False)
Key = Annotated[str | None, Security(API_KEY)]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]

ProductId = Annotated[str, Path(examples=["P000001"])]
Slot = Annotated[Literal["", "blue", "green"], Query(description=openapi.SLOT)]
TimeoutMs = Annotated[
    str | None,
    WithJsonSchema(openapi.TIMEOUT_MS_SCHEMA),
    Header(alias="X-Timeout-Ms", description=openapi.TIMEOUT_MS),
]


async def get_replica(request: Request) -> Replica:
    """The replica of this application. Dependencies are coroutines: FastAPI would give a function a thread."""
    replica: Replica = request.app.state.replica
    return replica


ReplicaDep = Annotated[Replica, Depends(get_replica)]


async def require_admin(request: Request, replica: ReplicaDep, _: Bearer) -> None:
    """Raises ApiError(401) unless the caller has the admin token."""
    replica.access.check_admin(request.headers.get("authorization", ""))


async def admit(request: Request, replica: ReplicaDep, _: Key, __: Bearer) -> None:
    """Counts one search against the caller's key. Raises ApiError: 401 without a needed key, 429 when none are left."""
    replica.access.admit(request.headers)


def chosen_release(request: Request, slot: str = "") -> Release:
    """The live release, or a slot's for an admin. Raises ApiError: 401, or 503 where there is none."""
    replica: Replica = request.app.state.replica
    if slot:
        replica.access.check_admin(request.headers.get("authorization", ""))
    return replica.release(slot)


@dataclass(frozen=True)
class SearchCall:
    """The searches of one HTTP request: all on one release, all by the same deadline."""

    request: Request
    replica: Replica
    release: Release
    slot: str
    deadline: Deadline

    async def answer(self, query: queries.Query, suffix: str = "") -> SearchAnswer:
        """Runs a query on a worker, after fetching its photo where it is a URL. `suffix` numbers the searches of a batch.

        Raises what a search raises, and ApiError(503) where too many wait.
        """
        replica, state = self.replica, self.request.state
        timings = Timings(self.deadline)
        self.deadline.check("work")
        state.phases.append(timings)
        address = client_address(self.request.client.host) if self.request.client else ""
        if query.request.image_url is not None:
            photo = await replica.fetch(query.request.image_url, timings, address)
            query = await query_of(query.request, photo)
        sampled = not self.slot and self.request.headers.get("sec-gpc") != "1"
        try:
            answer = await replica.search(self.release, query, timings, state.request_id + suffix, sampled, address)
        except FilterError as error:
            raise replica.with_change(error, self.release) from None
        replica.search_metrics.count(answer)
        return answer


def search_call(request: Request, slot: str, timeout_ms: str | None) -> SearchCall:
    """The search call of a request whose body is read. Its deadline starts here. Raises ApiError, or InvalidRequest for `timeout_ms`."""
    replica: Replica = request.app.state.replica
    return SearchCall(request, replica, chosen_release(request, slot), slot, replica.deadline(timeout_ms))


async def get_search_call(request: Request, slot: Slot = "", timeout_ms: TimeoutMs = None) -> SearchCall:
    """The same as a dependency, after the body where a route declares the body first."""
    return search_call(request, slot, timeout_ms)


def slot_parameter(request: Request) -> str:
    """`slot` of a route that reads its request itself. Raises InvalidRequest with the sentence of a declared parameter."""
    slot = request.query_params.get("slot", "")
    if slot not in ("", *SLOTS):
        raise InvalidRequest(f"slot: Input should be '', {' or '.join(repr(name) for name in SLOTS)}")
    return slot


SearchCallDep = Annotated[SearchCall, Depends(get_search_call)]


async def query_of(search: SearchRequest, photo: bytes | None = None) -> queries.Query:
    """The query of a request; large photos are read in a thread. Raises InvalidRequest when the photo is not base64."""
    if len(photo if photo is not None else search.image or "") < LARGE:
        return queries.Query.of(search, photo)
    return await asyncio.to_thread(queries.Query.of, search, photo)


async def search_fields(
    k: Annotated[int, Query(ge=1, le=200, description="how many products")] = 20,
    candidates: Annotated[
        int | None, Query(ge=1, le=2000, description="how many to rank; by default the version's own, 500")
    ] = None,
    filter: Annotated[
        str,
        Query(
            description="a Filter as JSON",
            examples=['{"in_stock": true}'],
            json_schema_extra={"contentMediaType": "application/json"},
        ),
    ] = "",
    explain: Annotated[bool, Query(description="with each term of each result's score")] = False,
) -> dict[str, Any]:
    """SearchRequest fields that every GET route takes as query parameters."""
    conditions = validated(Filter, json_object(filter.encode(), "filter")) if filter else None
    return {"k": k, "candidates": candidates, "filter": conditions, "explain": explain}


SearchFields = Annotated[dict[str, Any], Depends(search_fields)]
