"""What the OpenAPI document says beyond what FastAPI reads from the signatures: problems, headers, and bodies that routes read by hand."""

from typing import Any

from fastapi import FastAPI

from serving.filters import SCHEMA
from serving.models import BatchRequest, Problem, SearchRequest
from serving.problems import TITLES

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these problems."""
    return {status: {"description": TITLES[status], "content": PROBLEM} for status in statuses}


def example(value: Any, media: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers something like this."""
    return {200: {"content": {media: {"example": value}}}}


ADMIN: dict[str, Any] = {"security": [{"admin": []}]}
PICTURE_SECURITY: dict[str, Any] = {"security": [{}, {"admin": []}]}
SECURITY: dict[str, Any] = {"security": [{}, {"key": []}, {"admin": []}]}
SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "where this replica asks for keys"},
    "admin": {"type": "http", "scheme": "bearer", "description": "the admin token, for `slot` and for operating a replica"},
}
PARAMETERS = {
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "names the request in the answer, logs and traces, where it is a plain word of up to 64 characters",
        "schema": {"type": "string"},
    },
    "Timeout": {
        "name": "X-Timeout-Ms",
        "in": "header",
        "description": "milliseconds, where the caller gives less time than the replica would",
        "schema": {"type": "number", "minimum": 0},
        "example": 500,
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "the ETag of an answer that the caller has",
        "schema": {"type": "string"},
    },
}
HEADERS = {
    "RequestId": ("X-Request-Id", "the caller's own, or one of ours", "string"),
    "RetryAfter": ("Retry-After", "seconds after which it is worth trying again", "integer"),
    "ServerTiming": ("Server-Timing", "milliseconds of each phase", "string"),
    "ETag": ("ETag", "weak: names the products that are found; the request id and timings differ", "string"),
    "ContentLocation": ("Content-Location", "the address where caches may keep a photo's answer", "string"),
}


def _parameter(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def headers(*names: str) -> dict[str, dict[str, str]]:
    """`headers` of a response, by their names in HEADERS."""
    return {HEADERS[name][0]: {"$ref": f"#/components/headers/{name}"} for name in names}


PHOTO_BODY: dict[str, Any] = {
    "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
    "multipart/form-data": {
        "schema": {
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
                "user": {"type": "string", "description": "an Asker as JSON", "example": '{"brands": {"Norda": 0.8}}'},
                "explain": {"type": "boolean"},
            },
        }
    },
}
BATCH_BODY: dict[str, Any] = {
    "application/json": {
        "schema": {"$ref": "#/components/schemas/BatchRequest"},
        "example": {"searches": [{"product_id": "P000001", "k": 5}, {"text": "a red mug"}]},
    }
}


def body(content: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body by hand."""
    return {"requestBody": {"required": True, "content": content}}


SEARCHED: dict[int | str, dict[str, Any]] = {200: {"headers": headers("ServerTiming", "ContentLocation")}}
SEARCHED |= problems(401, 404, 408, 413, 415, 422, 429, 503, 504)
BATCHED = problems(401, 408, 413, 422, 429, 503)
KEPT: dict[int | str, dict[str, Any]] = {
    200: {"headers": headers("ServerTiming", "ETag")},
    304: {"description": "Nothing new: the caller has this answer", "headers": headers("ETag")},
}
KEPT |= problems(401, 404, 422, 429, 503, 504)
SEARCH = SECURITY | {"parameters": [_parameter("Timeout")]} | body(PHOTO_BODY)
BATCH = SECURITY | {"parameters": [_parameter("Timeout")]} | body(BATCH_BODY)
ASK = SECURITY | {"parameters": [_parameter("Timeout"), _parameter("IfNoneMatch")]}


def describe(app: FastAPI) -> None:
    """Adds the models of those bodies, headers, problems and the ways to say who asks to the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            components = schema.setdefault("components", {})
            for model in (SearchRequest, BatchRequest, Problem):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                components.setdefault("schemas", {}).update(own.pop("$defs", {}) | {model.__name__: own})
            components["schemas"]["Filter"] = SCHEMA  # it names itself, which pydantic's own generator cannot say
            components["securitySchemes"] = SCHEMES
            components["parameters"] = PARAMETERS
            components["headers"] = {n: {"description": told, "schema": {"type": kind}} for n, (_, told, kind) in HEADERS.items()}
            for operation in (o for path in schema["paths"].values() for o in path.values()):
                _name_headers_of_all(operation)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_headers_of_all(operation: dict[str, Any]) -> None:
    """What every route takes and answers."""
    operation.setdefault("parameters", []).append(_parameter("RequestId"))
    for status, response in operation["responses"].items():
        later = ("RetryAfter",) if status in ("429", "503") else ()
        response["headers"] = response.get("headers", {}) | headers("RequestId", *later)
