"""Parses search requests: multipart forms with a photo, and JSON. serving/api/body_limits.py limits the bytes read."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serving.api.errors import ApiError, validation_message
from serving.contract.preprocess import ImageRejected
from serving.invalid_request import InvalidRequest

M = TypeVar("M", bound=BaseModel)

JSON = "application/json"

FORM_FIELDS = ("k", "candidates", "explain", "text", "text_weight")
JSON_FIELDS = ("filter", "user", "box")
KNOWN_FIELDS = frozenset(FORM_FIELDS + JSON_FIELDS)
MAX_FIELDS = 10
MAX_VALUES = 20_000
"""Most values in the JSON of one search, counted by commas: a vector has up to 4,096 numbers, a filter's list up to 1,000 values. A
photo's base64 has none. Without a limit, parsing ten megabytes of numbers blocks the event loop for a second."""


def body_limit(max_image_bytes: int) -> int:
    """The body limit in bytes for a photo limit: base64 makes 4 bytes of 3, and there are other fields."""
    return int(max_image_bytes * 1.4) + 65_536


async def read_upload(request: Request) -> tuple[bytes | None, dict[str, Any]]:
    """Reads the photo's bytes (None when the body is JSON) and the other fields. Raises ImageRejected or InvalidRequest."""
    kind = _media_type(request)
    if kind == JSON:
        return None, json_object(await request.body())
    if kind != "multipart/form-data":
        raise ImageRejected("format", "send the photo as multipart/form-data (field image), or a JSON object")
    try:
        async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
            image = form.get("image")
            photo = await image.read() if isinstance(image, UploadFile) else None
    except HTTPException as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error.detail}") from None
    except UnicodeError:
        raise InvalidRequest("the multipart body cannot be read: its text is not in the charset that it names") from None
    if photo is None:
        raise InvalidRequest("the field image is missing: send the photo's bytes as a file")
    if unknown := form.keys() - KNOWN_FIELDS - {"image"}:
        raise InvalidRequest(f"the field {min(unknown)!r} is none of those beside a photo: {', '.join(sorted(KNOWN_FIELDS))}")
    fields: dict[str, Any] = {n: form[n] for n in FORM_FIELDS if n in form}
    fields |= {n: json_object(str(form[n]).encode(errors="surrogatepass"), f"the field {n}") for n in JSON_FIELDS if form.get(n)}
    return photo, fields


def require_json(request: Request) -> None:
    """Raises ApiError(415) where a body is said to be anything but JSON."""
    kind = _media_type(request)
    if kind != JSON:
        raise ApiError(415, f"send a JSON object as {JSON}, not as {kind[:80] or 'what has no content type'}", "format")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_object(data: bytes, what: str = "the body", most: int = MAX_VALUES) -> dict[str, Any]:
    """Parses a JSON object. Raises InvalidRequest saying that `what` is not one, or holds more than `most` values."""
    if data.count(b",") > most:
        raise InvalidRequest(f"{what} holds more than {most:,} values")
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is not a JSON object")
    return value


def validated(model: type[M], fields: Mapping[str, Any]) -> M:
    """The model of a request's fields. Raises InvalidRequest naming the first that is not as it has to be."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(validation_message(error.errors())) from None
