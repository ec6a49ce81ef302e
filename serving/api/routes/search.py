"""Search routes: POST /v1/search, and the cacheable GET forms."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response

from serving.api.dependencies import (
    ProductId,
    SearchCall,
    SearchCallDep,
    SearchFields,
    admit,
    query_of,
    search_call,
    slot_parameter,
)
from serving.api.openapi import CACHEABLE_RESPONSES, KEY_OPTIONAL, SEARCH_OPERATION, SEARCH_RESPONSES
from serving.api.uploads import json_object, read_upload, validated
from serving.contract.box import Box
from serving.invalid_request import InvalidRequest
from serving.search import query as queries
from serving.search.schemas import MAX_TEXT_LENGTH, PHOTO_SHA256, SearchAnswer, SearchRequest

MAX_AGE_S = 60
"""max-age for CDNs. Short, because a flip does not purge them; afterwards they revalidate by ETag."""
PRIVATE = "private, no-store"
MAX_URL_LENGTH = 2048
"""Characters of a URL that every client, proxy and cache accepts."""

posted = APIRouter()
"""POST /v1/search, whose function reads the request itself: serving/api/direct_route.py."""
router = APIRouter(dependencies=[Depends(admit)])
IfNoneMatch = Annotated[str, Header(alias="If-None-Match", description="the ETag of an answer that the caller has")]


async def posted_query(request: Request) -> queries.Query:
    """The query of a multipart or JSON body, by content type. Raises ImageRejected or InvalidRequest."""
    photo, fields = await read_upload(request)
    return await query_of(validated(SearchRequest, fields | ({"image": ""} if photo is not None else {})), photo)


@posted.post("/v1/search", response_model=SearchAnswer, responses=SEARCH_RESPONSES, openapi_extra=SEARCH_OPERATION)
async def search(request: Request) -> Response:
    """Search by a photo (multipart field `image`, or base64 in JSON), words, a product or a vector; or a photo and words mixed.

    A photo's answer that is not personal names the address where caches may keep it, in `Content-Location`, unless a filter
    makes that too long.
    """
    request.app.state.replica.access.admit(request.headers)
    query = await posted_query(request)
    call = search_call(request, slot_parameter(request), request.headers.get("x-timeout-ms"))
    answer = await call.answer(query)
    headers = {"Cache-Control": PRIVATE, "Server-Timing": _server_timing(answer)}
    if query.photo is not None and query.request.text is None and not query.personal and not call.slot:
        address = "/v1/search?" + urlencode(_get_parameters(query))
        if len(address) <= MAX_URL_LENGTH:
            headers["Content-Location"] = address
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


@router.get("/v1/search", response_model=SearchAnswer, responses=CACHEABLE_RESPONSES, openapi_extra=KEY_OPTIONAL)
async def search_by_address(
    call: SearchCallDep,
    fields: SearchFields,
    response: Response,
    photo: Annotated[str, Query(pattern=f"{PHOTO_SHA256}|^$", description="the sha256 of a photo that was posted lately")] = "",
    text: Annotated[str | None, Query(max_length=MAX_TEXT_LENGTH, pattern=r"\S")] = None,
    product_id: Annotated[str | None, Query(max_length=1000)] = None,
    box: Annotated[str, Query(description="of a photo: a Box as JSON")] = "",
    if_none_match: IfNoneMatch = "",
) -> SearchAnswer | Response:
    """The form of a search that caches and CDNs may keep: by words, a product, or the sha256 of a photo that is known here."""
    if sum((bool(photo), text is not None, product_id is not None)) != 1:
        raise InvalidRequest("give exactly one of photo (its sha256), text, product_id")
    cut = validated(Box, json_object(box.encode(), "box")) if box else None
    asked = {"image": "" if photo else None, "text": text, "product_id": product_id, "box": cut}
    wanted = validated(SearchRequest, fields | asked)
    return await _cacheable(call, queries.Query.of(wanted, photo_sha256=photo), response, if_none_match)


@router.get(
    "/v1/products/{product_id:path}/similar",
    response_model=SearchAnswer,
    responses=CACHEABLE_RESPONSES,
    openapi_extra=KEY_OPTIONAL,
)
async def similar(
    product_id: ProductId, call: SearchCallDep, fields: SearchFields, response: Response, if_none_match: IfNoneMatch = ""
) -> SearchAnswer | Response:
    """Products that look like one of the catalogue."""
    wanted = validated(SearchRequest, fields | {"product_id": product_id})
    return await _cacheable(call, queries.Query.of(wanted), response, if_none_match)


async def _cacheable(call: SearchCall, query: queries.Query, response: Response, if_none_match: str) -> SearchAnswer | Response:
    """The answer to a GET, with ETag and Cache-Control: public unless it is a slot's or this replica needs keys."""
    headers = {"Cache-Control": PRIVATE}
    known: list[str] = []
    if not call.slot:
        reach = "public" if call.replica.access.open else "private"
        tag = queries.etag(call.release, query)
        headers = {"Cache-Control": f"{reach}, max-age={MAX_AGE_S}, stale-while-revalidate={MAX_AGE_S}"}
        headers |= {"Vary": "Accept-Encoding", "ETag": tag}
        known = [t.strip() for t in if_none_match.split(",")]
        if tag in known or tag.removeprefix("W/") in known:
            return Response(status_code=304, headers=headers)
    answer = await call.answer(query)
    if answer.coverage.shards_ok < answer.coverage.shards_total:
        headers = {"Cache-Control": PRIVATE}
    elif known == ["*"]:  # any answer, now that there is one
        return Response(status_code=304, headers=headers)
    response.headers.update(headers | {"Server-Timing": _server_timing(answer)})
    return answer


def _server_timing(answer: SearchAnswer) -> str:
    return ", ".join(f"{name};dur={ms}" for name, ms in answer.timings_ms.items())


def _get_parameters(query: queries.Query) -> dict[str, str]:
    """The query as parameters of GET /v1/search."""
    wanted = query.request
    found = {"photo": query.photo_sha256, "k": str(wanted.k)}
    if wanted.candidates:
        found["candidates"] = str(wanted.candidates)
    if wanted.filter:
        found["filter"] = wanted.filter.model_dump_json()
    if query.box:
        found["box"] = query.box.model_dump_json()
    return found | ({"explain": "true"} if wanted.explain else {})
