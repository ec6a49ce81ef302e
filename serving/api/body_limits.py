"""ASGI middleware that limits request bodies: size, time to arrive, and number received at once.

Neither uvicorn nor Starlette limits a body.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.admission import AdmissionLimit
from serving.api.errors import ApiError
from serving.contract.preprocess import ImageRejected


class BodyLimits:
    """Limits bodies to `max_bytes` (`by_path`: other limits by path), `limit_s` seconds, and `admission` at once.

    Raises from `receive`, that is, where the body is read: ImageRejected("too_many_bytes") by the announced or the received
    length, ApiError(408), ApiError(503). A body that nobody reads is not admitted.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, limit_s: float, admission: AdmissionLimit, by_path: Mapping[str, int] | None = None
    ) -> None:
        self.app, self.max_bytes, self.limit_s, self.admission, self.by_path = app, max_bytes, limit_s, admission, by_path or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with ExitStack() as place:
            await self.app(scope, self._limited(scope, receive, place), send)

    def _limited(self, scope: Scope, receive: Receive, place: ExitStack) -> Receive:
        """Wraps `receive` of one request. `place` holds the admission until the body is whole."""
        most, length = self.by_path.get(scope["path"], self.max_bytes), Headers(scope=scope).get("content-length", "")
        size, whole, deadline = 0, False, 0.0

        async def limited() -> Message:
            nonlocal size, whole, deadline
            if whole:  # what may come now is that the caller left
                return await receive()
            if not deadline:
                if length.isdecimal() and int(length) > most:
                    raise ImageRejected("too_many_bytes", f"the body has {length} bytes; at most {most} are accepted")
                place.enter_context(self.admission)
                deadline = asyncio.get_running_loop().time() + self.limit_s
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body did not arrive whole within {self.limit_s:g} s", "body") from None
            size += len(message.get("body", b""))
            if size > most:
                raise ImageRejected("too_many_bytes", f"the body has more than {most} bytes")
            if not message.get("more_body", False):
                whole = True
                place.close()
            return message

        return limited
