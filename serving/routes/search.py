"""Searching: one query, several at once, and what looks like a product."""

from functools import partial
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from serving import queries
from serving.contract.preprocess import ImageRejected
from serving.models import BatchAnswer, BatchRequest, Problem, SearchAnswer, SearchRequest
from serving.problems import TITLES, sentence_of
from serving.queries import QueryError
from serving.release import Release
from serving.replica import Replica
from serving.routes.described import BATCH_BODY, PHOTO_BODY, PROBLEMS, body
from serving.uploads import read_json, read_upload

FRESH_S = 60
"""How long a CDN may answer by itself. Short, as a flip does not reach it; afterwards the ETag asks whether anything changed."""
SHARED = f"public, max-age={FRESH_S}, stale-while-revalidate={FRESH_S}"
OWN = "private, no-store"

Slot = Annotated[str, Query(description="a slot instead of what is live; needs the admin token", pattern="^(blue|green|)$")]


def chosen(replica: Replica, request: Request, slot: str) -> Release:
    """The live release, or a slot's own for an admin. Raises Refused."""
    if slot:
        replica.check_admin(request.headers.get("authorization", ""))
    return replica.release(slot)


def search_routes(app: FastAPI, replica: Replica) -> None:
    async def answer(request: Request, slot: str, wanted: SearchRequest, photo: bytes | None) -> Response:
        release = chosen(replica, request, slot)
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

    @app.post("/v1/search", response_model=SearchAnswer, responses=PROBLEMS, openapi_extra=body(PHOTO_BODY))
    async def search(request: Request, slot: Slot = "") -> Response:
        """Search by a photo (multipart field `image`, or base64 in JSON), a product or a vector."""
        photo, fields = await read_upload(request, replica.limits.max_bytes, replica.settings.body_s)
        wanted = SearchRequest.model_validate(fields | ({"image": ""} if photo is not None else {}))
        return await answer(request, slot, wanted, photo)

    @app.post("/v1/search/batch", response_model=BatchAnswer, responses=PROBLEMS, openapi_extra=body(BATCH_BODY))
    async def batch(request: Request, slot: Slot = "") -> Response:
        """Up to 32 searches at once, all answered by one version. A search that cannot be answered does not fail the others."""
        fields = await read_json(request, replica.limits.max_bytes, replica.settings.body_s)
        searches = BatchRequest.model_validate(fields).searches
        release = chosen(replica, request, slot)
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
