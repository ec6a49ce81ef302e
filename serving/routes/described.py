"""What the OpenAPI document says beyond what FastAPI reads from the signatures: problems, and bodies that routes read by hand."""

from typing import Any

from fastapi import FastAPI

from serving.models import BatchRequest, Problem, SearchRequest
from serving.problems import TITLES

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": TITLES[status], "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status in (401, 408, 413, 415, 422, 503)
}
PHOTO_BODY = {
    "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "k": {"type": "integer", "minimum": 1, "maximum": 200},
                "candidates": {"type": "integer", "minimum": 1, "maximum": 2000},
                "filter": {"type": "string", "description": "a Filter as JSON"},
                "explain": {"type": "boolean"},
            },
        }
    },
}
BATCH_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}}


def body(content: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body by hand."""
    return {"requestBody": {"required": True, "content": content}}


def describe_bodies(app: FastAPI) -> None:
    """Adds the models of those bodies to the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            for model in (SearchRequest, BatchRequest):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schema["components"]["schemas"] |= own.pop("$defs", {}) | {model.__name__: own}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
