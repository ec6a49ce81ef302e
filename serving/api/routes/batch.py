"""The batch route: several searches in one request."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from serving.api.dependencies import Bearer, Key, SearchCallDep, query_of
from serving.api.errors import EXPECTED_ERRORS, internal_problem, problem_of
from serving.api.openapi import BATCH_RESPONSES, KEY_OPTIONAL
from serving.api.routes.search import PRIVATE
from serving.api.uploads import MAX_VALUES, json_object, require_json
from serving.search.schemas import BatchAnswer, BatchRequest, Problem, SearchAnswer, SearchRequest

MAX_BATCH_VALUES = 10 * MAX_VALUES


class StrictJsonRequest(Request):
    """A request whose JSON is an object of at most BATCH_VALUES values, without NaN and lone surrogates."""

    async def json(self) -> Any:
        """Raises InvalidRequest with one sentence where the body is not such an object."""
        if not hasattr(self, "_object"):
            self._object = json_object(await self.body(), most=MAX_BATCH_VALUES)
        return self._object


class StrictJsonRoute(APIRoute):
    """Checks credentials before reading the body as StrictJsonRequest does: FastAPI reads bodies before it runs dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            request = StrictJsonRequest(request.scope, request.receive)
            request.app.state.replica.access.admit(request.headers, 0)
            require_json(request)
            await request.json()  # before FastAPI does, which would make a 400 of whatever is raised
            return await handle(request)

        return strict


router = APIRouter(route_class=StrictJsonRoute)


@router.post("/v1/search/batch", responses=BATCH_RESPONSES, openapi_extra=KEY_OPTIONAL)
async def batch(body: BatchRequest, call: SearchCallDep, response: Response, _: Key, __: Bearer) -> BatchAnswer:
    """Up to 32 searches at once, all answered by one version. A search that cannot be answered does not fail the others."""
    call.replica.access.admit(call.request.headers, len(body.searches))
    metrics = call.replica.request_metrics
    places = asyncio.Semaphore(call.replica.settings.workers)

    async def answer(number: int, search: SearchRequest) -> SearchAnswer | Problem:
        request_id = f"{call.request.state.request_id}.{number}"
        async with places:
            try:
                return await call.answer(await query_of(search), f".{number}")
            except EXPECTED_ERRORS as error:
                return problem_of(error, request_id, metrics)
            except Exception as error:  # the batch is a 200, so each fault of ours is counted beside it
                metrics.requests.labels("/v1/search/batch", "500").inc()
                return internal_problem(error, request_id)

    response.headers["Cache-Control"] = PRIVATE
    return BatchAnswer(answers=list(await asyncio.gather(*(answer(n, s) for n, s in enumerate(body.searches)))))
