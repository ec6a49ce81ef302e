"""Searching: one query, several at once, and what looks like a product."""

import asyncio
from typing import Annotated
from urllib.parse import urlencode

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response

from serving import queries
from serving.filters import Filter
from serving.models import MOST_WORDS, PHOTO_SHA256, BatchAnswer, BatchRequest, Problem, SearchAnswer, SearchRequest
from serving.phases import Phases
from serving.problems import EXPECTED, problem_of
from serving.release import Release
from serving.replica import Replica
from serving.routes.described import ASK, BATCH, BATCHED, KEPT, SEARCH, SEARCHED
from serving.uploads import MOST_VALUES, json_object, read_upload

FRESH_S = 60
"""How long a CDN may answer by itself. Short, as a flip does not reach it; afterwards the ETag asks whether anything changed."""
OWN = "private, no-store"
LARGE = 1 << 20
"""Bytes from which on a photo is read and named beside the loop: decoding and hashing ten megabytes takes it a tenth of a second."""
BATCH_VALUES = 10 * MOST_VALUES
MOST_ADDRESS = 2048
"""Characters of an address that every client, proxy and cache takes."""

Slot = Annotated[str, Query(description="a slot instead of what is live; needs the admin token", pattern="^(blue|green|)$")]
ProductId = Annotated[str, Path(examples=["P000001"])]
Number = Annotated[int, Query(ge=1, le=200, description="how many products")]
Candidates = Annotated[int | None, Query(ge=1, le=2000, description="how many to rank; by default the version's own, 500")]
Wanted = Annotated[
    str,
    Query(
        description="a Filter as JSON",
        examples=['{"in_stock": true}'],
        json_schema_extra={"contentMediaType": "application/json"},
    ),
]
Explain = Annotated[bool, Query(description="with each term of each result's score")]


def chosen(replica: Replica, request: Request, slot: str) -> Release:
    """The live release, or a slot's own for an admin. Raises Refused."""
    if slot:
        replica.access.check_admin(request.headers.get("authorization", ""))
    return replica.release(slot)


async def query_of(wanted: SearchRequest, photo: bytes | None = None) -> queries.Query:
    """What is asked. Raises ValueError when the photo in the request is not base64."""
    if len(photo if photo is not None else wanted.image or "") < LARGE:
        return queries.Query.of(wanted, photo)
    return await asyncio.to_thread(queries.Query.of, wanted, photo)


def search_routes(app: FastAPI, replica: Replica) -> None:
    def admit(request: Request, searches: int = 1) -> None:
        replica.access.admit(request.headers, searches)

    def latest_of(request: Request) -> float:
        return replica.latest(request.headers.get("x-timeout-ms"))

    async def begun(
        request: Request, release: Release, query: queries.Query, latest: float, number: str = ""
    ) -> asyncio.Future[SearchAnswer]:
        """One query that a worker is at, or will be: its photo was fetched where it names an address. Raises what that raises."""
        phases = Phases(latest)
        phases.check("work")
        request.state.phases.append(phases)
        if query.request.image_url is not None:
            photo = await replica.fetch(query.request.image_url, phases)
            query = await query_of(query.request, photo)
        request_id = request.state.request_id + number
        sampled = not request.query_params.get("slot") and request.headers.get("sec-gpc") != "1"
        return replica.begin(queries.search(release, query, replica.means, phases, request_id, sampled), phases)

    async def counted(search: asyncio.Future[SearchAnswer]) -> SearchAnswer:
        """The answer. Raises what a search raises."""
        found = await search
        replica.metrics.search(found)
        return found

    async def found_for(
        request: Request, release: Release, query: queries.Query, latest: float, number: str = ""
    ) -> SearchAnswer:
        return await counted(await begun(request, release, query, latest, number))

    def told(found: SearchAnswer, headers: dict[str, str]) -> Response:
        timings = ", ".join(f"{name};dur={ms}" for name, ms in found.timings_ms.items())
        return Response(found.wire, media_type="application/json", headers=headers | {"Server-Timing": timings})

    async def cacheable(request: Request, release: Release, query: queries.Query, slot: str) -> Response:
        """The answer to a GET: with an ETag, and for everybody unless it is a slot's or this replica asks for keys."""
        if slot:
            return told(await found_for(request, release, query, latest_of(request)), {"Cache-Control": OWN})
        reach = "public" if replica.access.open else "private"
        headers = {"Cache-Control": f"{reach}, max-age={FRESH_S}, stale-while-revalidate={FRESH_S}", "Vary": "Accept-Encoding"}
        headers["ETag"] = tag = queries.etag(release, query)
        known = [t.strip() for t in request.headers.get("if-none-match", "").split(",")]
        if tag in known or tag.removeprefix("W/") in known:
            return Response(status_code=304, headers=headers)
        found = await found_for(request, release, query, latest_of(request))
        whole = found.coverage.shards_ok == found.coverage.shards_total
        if whole and known == ["*"]:  # any answer, now that there is one
            return Response(status_code=304, headers=headers)
        return told(found, headers if whole else {"Cache-Control": OWN})

    @app.post("/v1/search", response_model=SearchAnswer, responses=SEARCHED, openapi_extra=SEARCH)
    async def search(request: Request, slot: Slot = "") -> Response:
        """Search by a photo (multipart field `image`, or base64 in JSON), words, a product or a vector; or a photo and words mixed.

        A photo's answer that is not personal names the address where caches may keep it, in `Content-Location`, unless a filter
        makes that too long.
        """
        admit(request)
        photo, fields = await read_upload(request)
        wanted = SearchRequest.model_validate(fields | ({"image": ""} if photo is not None else {}))
        release, query = chosen(replica, request, slot), await query_of(wanted, photo)
        under_way = await begun(request, release, query, latest_of(request))
        headers = {"Cache-Control": OWN}
        if query.photo is not None and wanted.text is None and not query.personal and not slot:
            address = "/v1/search?" + urlencode(_as_get(query))
            if len(address) <= MOST_ADDRESS:
                headers["Content-Location"] = address
        return told(await counted(under_way), headers)

    @app.get("/v1/search", response_model=SearchAnswer, responses=KEPT, openapi_extra=ASK)
    async def ask(
        request: Request,
        photo: Annotated[
            str, Query(pattern=f"{PHOTO_SHA256}|^$", description="the sha256 of a photo that was posted lately")
        ] = "",
        text: Annotated[str | None, Query(max_length=MOST_WORDS, pattern=r"\S")] = None,
        product_id: Annotated[str | None, Query(max_length=1000)] = None,
        k: Number = 20,
        candidates: Candidates = None,
        filter: Wanted = "",
        explain: Explain = False,
        slot: Slot = "",
    ) -> Response:
        """The form of a search that caches and CDNs may keep: by words, a product, or the sha256 of a photo that is known here."""
        admit(request)
        if sum((bool(photo), text is not None, product_id is not None)) != 1:
            raise ValueError("give exactly one of photo (its sha256), text, product_id")
        wanted = SearchRequest(
            image="" if photo else None, text=text, product_id=product_id, k=k, candidates=candidates, explain=explain,
            filter=Filter.model_validate(json_object(filter.encode(), "filter")) if filter else None,
        )  # fmt: skip
        return await cacheable(request, chosen(replica, request, slot), queries.Query.of(wanted, photo_sha256=photo), slot)

    @app.post("/v1/search/batch", response_model=BatchAnswer, responses=BATCHED, openapi_extra=BATCH)
    async def batch(request: Request, slot: Slot = "") -> Response:
        """Up to 32 searches at once, all answered by one version. A search that cannot be answered does not fail the others."""
        admit(request, 0)
        fields = json_object(await request.body(), most=BATCH_VALUES)
        searches = BatchRequest.model_validate(fields).searches
        admit(request, len(searches))
        release = chosen(replica, request, slot)
        places, over = asyncio.Semaphore(replica.settings.workers * replica.settings.together), latest_of(request)

        async def one(number: int, wanted: SearchRequest) -> SearchAnswer | Problem:
            async with places:
                try:
                    return await found_for(request, release, await query_of(wanted), over, f".{number}")
                except EXPECTED as error:
                    return problem_of(error, f"{request.state.request_id}.{number}", replica.metrics)

        content = BatchAnswer(answers=list(await asyncio.gather(*(one(n, s) for n, s in enumerate(searches)))))
        return Response(content.model_dump_json(), media_type="application/json", headers={"Cache-Control": OWN})

    @app.get("/v1/products/{product_id:path}/similar", response_model=SearchAnswer, responses=KEPT, openapi_extra=ASK)
    async def similar(
        request: Request,
        product_id: ProductId,
        k: Number = 20,
        candidates: Candidates = None,
        filter: Wanted = "",
        explain: Explain = False,
        slot: Slot = "",
    ) -> Response:
        """Products that look like one of the catalogue."""
        return await ask(request, "", None, product_id, k, candidates, filter, explain, slot)


def _as_get(query: queries.Query) -> dict[str, str]:
    """The same question as parameters of GET /v1/search."""
    wanted = query.request
    found = {"photo": query.photo_sha256, "k": str(wanted.k)}
    if wanted.candidates:
        found["candidates"] = str(wanted.candidates)
    if wanted.filter:
        found["filter"] = wanted.filter.model_dump_json()
    return found | ({"explain": "true"} if wanted.explain else {})
