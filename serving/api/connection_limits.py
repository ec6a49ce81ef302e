"""uvicorn's HTTP protocol with limits on connections and request heads, which uvicorn and httptools do not have.

Bodies are limited by serving/api/body_limits.py.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.api.client_address import client_address
from serving.api.open_connections import OpenConnections
from serving.search.schemas import Problem

LINGER_S = 5.0
"""How long a connection that makes room still sends what is left of its answer."""
HEALTH = (b"/healthz", b"/readyz", b"/metrics")
"""What connections of the reserve may ask for."""


class HeadTooLarge(Exception):
    """Raised into the parser to stop it."""


class OnlyHealth(Exception):
    """Raised into the parser: a connection of the reserve asked for something else."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection; closed when a head does not arrive in time, and where `open_connections` has no room for it.

    The first head has `head_s` seconds; later ones have uvicorn's keep-alive timeout, counted from the previous answer. A head
    (request line, headers, and trailers of a chunked body) of more than `max_head_bytes` is answered 431.
    """

    def __init__(
        self, *args: Any, head_s: float = 20.0, max_head_bytes: int = 32_768, open_connections: OpenConnections | None = None,
        **named: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **named)
        self.head_s, self.max_head_bytes = head_s, max_head_bytes
        self.open_connections = open_connections or OpenConnections()
        self.address, self.only_health, self.path = "", False, b""
        self.head_bytes = 0
        """Bytes of the current head that the parser has reported."""
        self.unreported_bytes = 0
        """Bytes received since the parser last reported: it buffers a header until its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = (self.client or ("",))[0]
        self.address = host if self.open_connections.is_proxy(host) else client_address(host)
        if not self.open_connections.admit(self):
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.leave(self)
        super().connection_lost(exc)

    def close(self) -> None:
        self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)  # closing waits for a peer that reads nothing, for ever

    def pause_writing(self) -> None:
        """Who does not read its answer makes room as who does not ask: nothing else would end it."""
        super().pause_writing()
        self.open_connections.fell_silent(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self.open_connections.at_work(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else another request was sent before this answer
            self.open_connections.fell_silent(self)

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
        self.head_bytes, self.path = 0, b""
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.count_head(len(url))
        self.path += url
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_head(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.unreported_bytes = 0
        if self.only_health and self.path.partition(b"?")[0] not in HEALTH:
            raise OnlyHealth
        self.open_connections.at_work(self)
        super().on_headers_complete()
        if not self.pipeline:  # else an earlier request is being answered
            self.open_connections.fell_silent(self)  # the last in the row of those, until the body is whole

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self.open_connections.at_work(self)

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
        """uvicorn's answer to a parser error, which HeadTooLarge and OnlyHealth also raise."""
        if self.head_bytes > self.max_head_bytes:
            self.refuse_head()
        elif self.only_health:
            self.transport.write(_raw_problem(TOO_MANY, "503 Service Unavailable", "retry-after: 1\r\n"))
            self.transport.close()
        else:
            super().send_400_response(msg)

    def refuse_head(self) -> None:
        """Answers 431 and closes; only closes where an earlier request on this connection is unanswered."""
        if self.cycle is None or self.cycle.response_complete:
            detail = f"the request line and headers have more than {self.max_head_bytes} bytes"
            problem = Problem(title="Head too large", status=431, detail=detail, reason="head")
            self.transport.write(_raw_problem(problem, "431 Request Header Fields Too Large"))
        self.transport.close()


TOO_MANY = Problem(
    title="Not now", status=503, detail="too many connections are at work; try again in a second", reason="overloaded"
)


def _raw_problem(problem: Problem, status_line: str, headers: str = "") -> bytes:
    """The problem as raw HTTP: what never became a request reaches no application."""
    body = problem.model_dump_json().encode()
    head = (
        f"HTTP/1.1 {status_line}\r\ncontent-type: application/problem+json\r\n{headers}"
        f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
