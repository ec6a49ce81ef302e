"""Reading a request's body without ever holding more of it than is allowed."""

import json
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from serving.contract.preprocess import ImageRejected

JSON_OVERHEAD = 1.4
"""base64 makes 4 bytes of 3; the rest is room for the other fields."""
FORM_FIELDS = ("k", "candidates", "explain")


async def read_upload(request: Request, max_image_bytes: int) -> tuple[bytes | None, dict[str, Any]]:
    """The photo's bytes (None when the body is JSON) and the other fields. Raises ImageRejected or ValueError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = int(max_image_bytes * JSON_OVERHEAD) + 65_536
    if kind == "application/json":
        return None, _object(await _body(request, limit))
    if kind != "multipart/form-data":
        raise ImageRejected("format", "send the photo as multipart/form-data (field image), or a JSON object")
    _bound(request, limit)
    try:
        form = await request.form(max_files=1, max_fields=10)
    except MultiPartException as error:
        raise ValueError(f"the multipart body cannot be read: {error.message}") from None
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise ValueError("the field image is missing: send the photo's bytes as a file")
    data = await image.read(max_image_bytes + 1)
    fields: dict[str, Any] = {n: form[n] for n in FORM_FIELDS if n in form}
    if form.get("filter"):
        fields["filter"] = _object(str(form["filter"]).encode())
    return data, fields


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the body is not a JSON object")
    return value


def _bound(request: Request, limit: int) -> None:
    """Refuses a body by its announced length, and cuts one that is longer than it said."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise ImageRejected("too_many_bytes", f"the body has {length} bytes; at most {limit} are accepted")
    inner, seen = request.receive, 0

    async def receive() -> Any:
        nonlocal seen
        message = await inner()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise ImageRejected("too_many_bytes", f"the body has more than {limit} bytes")
        return message

    request._receive = receive


async def _body(request: Request, limit: int) -> bytes:
    _bound(request, limit)
    return await request.body()
