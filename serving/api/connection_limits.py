"""uvicorn's HTTP protocol with limits on connections and request heads, which uvicorn and httptools do not have.

Bodies are limited by serving/api/body_limits.py.
"""

import asyncio
import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.search.schemas import Problem

HEALTH = (b"/healthz", b"/readyz", b"/metrics")
HEALTH_RESERVE = 16
"""Connections beyond the most, for HEALTH alone: what watches a replica is answered while every other connection is at work."""


class HeadTooLarge(Exception):
    """Raised into the parser to stop it."""


class OnlyHealth(Exception):
    """Raised into the parser: a connection of the reserve asked for something else."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection; closed when a head does not arrive in time, and beyond `max_connections`, or `share` of them from one address.

    Beyond, the connection that has been silent longest, of the same address where that has its share, is closed in favour of the new
    one; where none is silent, the new one may ask for HEALTH only, and is closed beyond HEALTH_RESERVE.

    The first head has `head_s` seconds; later ones have uvicorn's keep-alive timeout, counted from the previous answer. A head
    (request line, headers, and trailers of a chunked body) of more than `max_head_bytes` is answered 431. `turned_away` counts the
    connections of this process closed for being too many.
    """

    turned_away = 0

    def __init__(
        self,
        *args: Any,
        head_s: float = 20.0,
        max_head_bytes: int = 32_768,
        max_connections: int = 1000,
        share: float = 1.0,
        proxies: tuple[str, ...] = (),
        **named: Any,
    ) -> None:
        super().__init__(*args, **named)
        self.most_of_one, self.proxies = share_of(max_connections, share), proxies
        self.address, self.silent_since, self.only_health, self.path = "", 0.0, False, b""
        self.head_s, self.max_head_bytes, self.max_connections = head_s, max_head_bytes, max_connections
        self.head_bytes = 0
        """Bytes of the current head that the parser has reported."""
        self.unreported_bytes = 0
        """Bytes received since the parser last reported: it buffers a header until its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address, self.silent_since = (self.client or ("",))[0], self.loop.time()
        if not self.make_room():
            LimitedHttpProtocol.turned_away += 1
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def make_room(self) -> bool:
        """Whether this new connection may stay; it may cost a silent one its place."""
        if len(self.connections) <= min(self.most_of_one, self.max_connections):
            return True
        others = [
            c for c in self.connections if isinstance(c, LimitedHttpProtocol) and c is not self and not c.transport.is_closing()
        ]
        reserve = [c for c in others if c.only_health]
        ordinary = [c for c in others if not c.only_health]
        same = [c for c in ordinary if c.address == self.address] if self.address not in self.proxies else []
        crowd = same if len(same) >= self.most_of_one else ordinary if len(ordinary) >= self.max_connections else []
        if not crowd or _close_silent(crowd):
            return True
        self.only_health = True
        return len(reserve) < HEALTH_RESERVE or _close_silent(reserve)

    def on_response_complete(self) -> None:
        self.silent_since = self.loop.time()
        super().on_response_complete()

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


def _close_silent(connections: list[LimitedHttpProtocol]) -> bool:
    """Closes the one that has been silent longest: it has sent no head, or none since it was answered. False: there is none."""
    silent = [c for c in connections if c.cycle is None or c.cycle.response_complete]
    if silent:
        LimitedHttpProtocol.turned_away += 1
        min(silent, key=lambda c: c.silent_since).transport.close()
    return bool(silent)


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


def share_of(limit: int, share: float) -> int:
    """How many of `limit` places one address may hold: at least one."""
    return max(1, math.ceil(limit * share))
