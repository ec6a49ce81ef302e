"""ASGI middleware that limits request bodies: size, time to arrive, and number received at once.

Neither uvicorn nor Starlette limits a body.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.body_encoding import GzipBody, body_decoder
from serving.api.client_address import client_address
from serving.api.errors import ApiError
from serving.api.upload_places import Upload, UploadPlaces
from serving.contract.image_limits import ImageRejected

SMALL_BYTES = 65_536
"""A body that announces at most this many bytes (a search by words, product or vector), and is no gzip, needs no place."""


class BodyLimits:
    """Limits bodies to `max_bytes` (`by_path`: other limits by path), `limit_s` seconds, and `places` at once; decodes gzip.

    Raises from `receive`, that is, where the body is read: ImageRejected("too_many_bytes") by the announced or the received
    length, ApiError: 408, 415 for its encoding, 503; InvalidRequest where it is not gzip. A body that nobody reads is not admitted.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, limit_s: float, places: UploadPlaces, by_path: Mapping[str, int] | None = None
    ) -> None:
        self.app, self.max_bytes, self.limit_s, self.places, self.by_path = app, max_bytes, limit_s, places, by_path or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with ExitStack() as place:
            await self.app(scope, self._limited(scope, receive, place), send)

    def _limited(self, scope: Scope, receive: Receive, place: ExitStack) -> Receive:
        """Wraps `receive` of one request. `place` holds the admission until the body is whole."""
        most, headers = self.by_path.get(scope["path"], self.max_bytes), Headers(scope=scope)
        size, received, whole = 0, 0, False
        upload: Upload | None = None
        decoder: GzipBody | None = None

        async def limited() -> Message:
            nonlocal size, received, whole, upload, decoder
            if whole:  # what may come now is that the caller left
                return await receive()
            if upload is None:
                decoder = body_decoder(headers.get("content-encoding", ""))
                upload = self._begin(scope, headers.get("content-length", ""), most, place, decoder is not None)
            message = await self._receive(receive, upload)
            body, last = message.get("body", b""), not message.get("more_body", False)
            if decoder is not None and message["type"] == "http.request":
                received += len(body)
                body = decoder.decode(body, last)
                message = {**message, "body": body}
            size += len(body)
            if size > most or received > most + SMALL_BYTES:
                raise ImageRejected("too_many_bytes", f"the body has more than {most} bytes")
            if last:
                whole = True
                place.close()
            return message

        return limited

    def _begin(self, scope: Scope, length: str, most: int, place: ExitStack, encoded: bool) -> Upload:
        """Admits a body by what it announces; one of gzip may grow to twenty times that, and always needs a place."""
        if length.isdecimal() and int(length) > most:
            raise ImageRejected("too_many_bytes", f"the body has {length} bytes; at most {most} are accepted")
        now = asyncio.get_running_loop().time()
        upload = Upload(client_address((scope.get("client") or ("",))[0]), now, now + self.limit_s)
        if encoded or not (length.isdecimal() and int(length) <= SMALL_BYTES):
            place.enter_context(self.places.admit(upload))
        return upload

    async def _receive(self, receive: Receive, upload: Upload) -> Message:
        """The next piece. Raises ApiError(408) past the upload's deadline."""
        try:
            async with asyncio.timeout_at(upload.deadline) as upload.timeout:
                message = await receive()
        except TimeoutError:
            raise ApiError(408, self._too_slow(upload), "body") from None
        finally:
            upload.timeout = None
        upload.received += len(message.get("body", b""))
        return message

    def _too_slow(self, upload: Upload) -> str:
        if upload.deadline < upload.began + self.limit_s:
            return "the body came too slowly while many others were waiting; send it again"
        return f"the body did not arrive whole within {self.limit_s:g} s"
