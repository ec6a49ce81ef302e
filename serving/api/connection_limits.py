"""uvicorn's HTTP protocol with limits on connections and request heads, which uvicorn and httptools do not have.

Bodies are limited by serving/api/body_limits.py.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.search.schemas import Problem


class HeadTooLarge(Exception):
    """Raised into the parser to stop it."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection; closed beyond `max_connections`, and when a head does not arrive in time.

    The first head has `head_s` seconds; later ones have uvicorn's keep-alive timeout, counted from the previous answer. A head
    (request line, headers, and trailers of a chunked body) of more than `max_head_bytes` is answered 431. `turned_away` counts the
    connections of this process closed for being too many.
    """

    turned_away = 0

    def __init__(
        self, *args: Any, head_s: float = 20.0, max_head_bytes: int = 32_768, max_connections: int = 1000, **named: Any
    ) -> None:
        super().__init__(*args, **named)
        self.head_s, self.max_head_bytes, self.max_connections = head_s, max_head_bytes, max_connections
        self.head_bytes = 0
        """Bytes of the current head that the parser has reported."""
        self.unreported_bytes = 0
        """Bytes received since the parser last reported: it buffers a header until its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            LimitedHttpProtocol.turned_away += 1
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None  # uvicorn would cancel it at the first byte
        self.unreported_bytes += len(data)
        super().data_received(data)
        if self.unreported_bytes > self.max_head_bytes and not self.transport.is_closing():
            self.refuse_head()
        if timer is None:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_task = timer
        else:
            timer.cancel()

    def on_message_begin(self) -> None:
        self.head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_head(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.unreported_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.unreported_bytes = 0
        super().on_body(body)

    def count_head(self, reported: int) -> None:
        """Raises HeadTooLarge."""
        self.unreported_bytes = 0
        self.head_bytes += reported
        if self.head_bytes > self.max_head_bytes:
            raise HeadTooLarge

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to a parser error, which HeadTooLarge also raises."""
        if self.head_bytes > self.max_head_bytes:
            self.refuse_head()
        else:
            super().send_400_response(msg)

    def refuse_head(self) -> None:
        """Answers 431 and closes; only closes where an earlier request on this connection is unanswered."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_head_too_large(self.max_head_bytes))
        self.transport.close()


def _head_too_large(most: int) -> bytes:
    """The problem as raw HTTP: what never became a request reaches no application."""
    detail = f"the request line and headers have more than {most} bytes"
    body = Problem(title="Head too large", status=431, detail=detail, reason="head").model_dump_json().encode()
    head = (
        "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
