"""Additions to the OpenAPI document that signatures cannot express: problems, response headers, bodies of two content types."""

from typing import Any

from fastapi import FastAPI

from serving.api.errors import TITLES
from serving.ranking.filters import SCHEMA

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for problems of these statuses."""
    return {status: {"description": TITLES[status], "content": PROBLEM} for status in statuses}


def example(value: Any, media: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """`responses` of a route with an example answer."""
    return {200: {"content": {media: {"example": value}}}}


def header(description: str, type_: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": type_}}


def request_body(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its JSON body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema} | more}}}


KEY_OPTIONAL: dict[str, Any] = {"security": [{}]}
"""Marks credentials as optional: they are needed only where the replica's settings ask for keys."""
SERVER_TIMING = {"Server-Timing": header("milliseconds of each phase")}
ETAG = {"ETag": header("weak: names the products that are found; the request id and timings differ")}
ADDRESS = {"Content-Location": header("the address where caches may keep a photo's answer")}
SEARCH_RESPONSES = problems(401, 404, 408, 413, 415, 422, 429, 503, 504)
SEARCH_RESPONSES[200] = {"headers": SERVER_TIMING | ADDRESS}
BATCH_RESPONSES = problems(401, 408, 413, 422, 429, 503)
CACHEABLE_RESPONSES = problems(401, 404, 422, 429, 503, 504)
CACHEABLE_RESPONSES[200] = {"headers": SERVER_TIMING | ETAG}
CACHEABLE_RESPONSES[304] = {"description": "Nothing new: the caller has this answer", "headers": ETAG}

FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF, BMP or TIFF"},
        "text": {"type": "string", "maxLength": 1000, "pattern": r"\S", "description": "words to mix with the photo"},
        "text_weight": {"type": "number", "minimum": 0, "maximum": 1},
        "k": {"type": "integer", "minimum": 1, "maximum": 200},
        "candidates": {"type": "integer", "minimum": 1, "maximum": 2000},
        "filter": {"type": "string", "description": "a Filter as JSON", "example": '{"in_stock": true}'},
        "user": {"type": "string", "description": "a RequestUser as JSON", "example": '{"brands": {"Norda": 0.8}}'},
        "box": {
            "type": "string",
            "description": "a Box as JSON",
            "example": '{"x": 0.25, "y": 0.1, "width": 0.5, "height": 0.6}',
        },
        "explain": {"type": "boolean"},
    },
}
SEARCH_BODY = request_body({"$ref": "#/components/schemas/SearchRequest"})
SEARCH_BODY["requestBody"]["content"]["multipart/form-data"] = {"schema": FORM}

SLOT = "a slot instead of what is live; needs the admin token"
TIMEOUT_MS = "milliseconds, where the caller gives less time than the replica would"
TIMEOUT_MS_SCHEMA: dict[str, Any] = {"type": "number", "minimum": 0, "examples": [500]}
SEARCH_OPERATION = SEARCH_BODY | {
    "security": [{"key": []}, {"admin": []}, {}],
    "parameters": [
        {
            "name": "slot", "in": "query", "required": False, "description": SLOT,
            "schema": {"enum": ["", "blue", "green"], "type": "string", "description": SLOT, "default": "", "title": "Slot"},
        },
        {
            "name": "X-Timeout-Ms", "in": "header", "required": False, "description": TIMEOUT_MS,
            "schema": TIMEOUT_MS_SCHEMA | {"title": "X-Timeout-Ms"},
        },
    ],
}  # fmt: skip
"""POST /v1/search, which takes these from the request itself; the other routes declare the same as parameters."""

REQUEST_ID = "names the request in the answer, logs and traces, where it is a plain word of up to 64 characters"


def describe(app: FastAPI) -> None:
    """Adds the headers of RequestMiddleware and of 429 and 503 to every operation, and the recursive schema of Filter."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            schema["components"]["schemas"]["Filter"] = SCHEMA
            for operation in (o for path in schema["paths"].values() for o in path.values()):
                request_id = {"name": "X-Request-Id", "in": "header", "description": REQUEST_ID, "schema": {"type": "string"}}
                operation["parameters"] = [*operation.get("parameters", []), request_id]
                for status, response in operation["responses"].items():
                    headers = {"X-Request-Id": header("the caller's own, or one of ours")}
                    if status in ("429", "503"):
                        headers["Retry-After"] = header("seconds after which it is worth trying again", "integer")
                    response["headers"] = response.get("headers", {}) | headers
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
