"""What the OpenAPI document says beyond what FastAPI reads from the signatures: problems, and bodies that routes read by hand."""

from typing import Any

from fastapi import FastAPI

from serving.filters import SCHEMA
from serving.models import BatchRequest, Problem, SearchRequest
from serving.problems import TITLES

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these problems."""
    return {status: {"description": TITLES[status], "content": PROBLEM} for status in statuses}


PROBLEMS = problems(401, 408, 413, 415, 422, 429, 503, 504)
NOT_THERE = problems(404) | PROBLEMS
ADMIN: dict[str, Any] = {"security": [{"admin": []}]}
SECURITY: dict[str, Any] = {"security": [{}, {"key": []}, {"admin": []}]}
SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "where this replica asks for keys"},
    "admin": {"type": "http", "scheme": "bearer", "description": "the admin token, for `slot` and for operating a replica"},
}
SLOT: dict[str, Any] = {
    "parameters": [
        {
            "name": "slot",
            "in": "query",
            "description": "a slot instead of what is live; needs the admin token",
            "schema": {"type": "string", "pattern": "^(blue|green|)$", "default": ""},
        }
    ]
}
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


def describe_bodies(app: FastAPI) -> None:
    """Adds the models of those bodies, problems and the ways to say who asks to the OpenAPI document."""
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
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
