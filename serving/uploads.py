"""Reading a request's body without ever holding more of it than is allowed."""

import asyncio
from typing import Any

from fastapi import Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from serving.contract.preprocess import ImageRejected
from serving.multipart import MultipartError, parts_of
from serving.problems import Refused

JSON_OVERHEAD = 1.4
"""base64 makes 4 bytes of 3; the rest is room for the other fields."""
FORM_FIELDS = ("k", "candidates", "explain", "text", "text_weight")
JSON_FIELDS = ("filter", "user")
KNOWN = frozenset(FORM_FIELDS + JSON_FIELDS)
MOST_VALUES = 20_000
"""What the JSON of one search may hold, by its commas: a vector has up to 4,096 numbers, a list of a filter up to 1,000 values. A
photo's base64 has none; without a limit, ten megabytes of numbers hold up everybody for a second."""
MOST_PARTS = 11
"""A photo and ten fields."""


async def read_upload(request: Request, max_image_bytes: int, limit_s: float) -> tuple[bytes | None, dict[str, Any]]:
    """The photo's bytes (None when the body is JSON) and the other fields.

    Raises ImageRejected, ValueError, or Refused(408) when the body takes longer than `limit_s` to arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return None, await read_json(request, max_image_bytes, limit_s)
    if kind != "multipart/form-data":
        raise ImageRejected("format", "send the photo as multipart/form-data (field image), or a JSON object")
    body = await read_bytes(request, _body_limit(max_image_bytes), limit_s)
    try:
        parts = parts_of(body, request.headers["content-type"], MOST_PARTS)
        form = {p.name: p.text() for p in parts if not p.is_file}
    except MultipartError as error:
        raise ValueError(f"the multipart body cannot be read: {error}") from None
    files = [p for p in parts if p.is_file]
    if len(files) > 1:
        raise ValueError("the multipart body holds several files; send one photo, as the field image")
    if not files or files[0].name != "image":
        raise ValueError("the field image is missing: send the photo's bytes as a file")
    if unknown := form.keys() - KNOWN:
        raise ValueError(f"the field {min(unknown)!r} is none of those beside a photo: {', '.join(sorted(KNOWN))}")
    fields: dict[str, Any] = {n: form[n] for n in FORM_FIELDS if n in form}
    fields |= {n: json_object(form[n].encode(), f"the field {n}") for n in JSON_FIELDS if form.get(n)}
    return files[0].content, fields


async def read_json(request: Request, max_image_bytes: int, limit_s: float, most: int = MOST_VALUES) -> dict[str, Any]:
    """The body as a JSON object with at most so many values. Raises as `read_upload`."""
    return json_object(await read_bytes(request, _body_limit(max_image_bytes), limit_s), most=most)


async def read_bytes(request: Request, most: int, limit_s: float) -> bytes:
    """The body, at most `most` bytes of it: refused by its announced length, and cut where it is longer than it said.

    Raises ImageRejected(too_many_bytes), Refused(408), or ClientDisconnect.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise ImageRejected("too_many_bytes", f"the body has {length} bytes; at most {most} are accepted")
    try:
        async with asyncio.timeout(limit_s):
            return await _whole(request, most)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive whole within {limit_s:g} s", "body") from None


def _body_limit(max_image_bytes: int) -> int:
    return int(max_image_bytes * JSON_OVERHEAD) + 65_536


async def _whole(request: Request, most: int) -> bytes:
    """Read straight from the server: through the framework's stream of pieces it takes three times as long."""
    pieces, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        if size > most:
            raise ImageRejected("too_many_bytes", f"the body has more than {most} bytes")
    return b"".join(pieces)


def json_object(data: bytes, what: str = "the body", most: int = MOST_VALUES) -> dict[str, Any]:
    """The JSON object in some bytes. Raises ValueError saying that `what` is none, or holds more than so many values."""
    if data.count(b",") > most:
        raise ValueError(f"{what} holds more than {most:,} values")
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise ValueError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value
