"""A body is read piece by piece, never more of it than is allowed, not waited for for ever, and only so many at once."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from serving.api.admission import AdmissionLimit
from serving.api.body_limits import BodyLimits
from serving.api.errors import ApiError
from serving.contract.preprocess import ImageRejected

PIECE = {"type": "http.request", "body": b"12345", "more_body": True}
END = {"type": "http.request", "body": b"67"}
GONE = {"type": "http.disconnect"}


async def read_within(
    messages: list[dict[str, Any]],
    most: int = 100,
    headers: dict[str, str] | None = None,
    admission: AdmissionLimit | None = None,
) -> bytes:
    """The body that an application behind the limits reads; nothing comes after the messages."""
    left, read = list(messages), []

    async def receive() -> dict[str, Any]:
        return left.pop(0) if left else await asyncio.Event().wait()  # type: ignore[return-value]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.append(await Request(scope, receive).body())

    async def send(message: Any) -> None:
        raise AssertionError("nothing is sent")

    sent = [(n.encode(), v.encode()) for n, v in (headers or {}).items()]
    limits = BodyLimits(app, 100, 0.05, admission or AdmissionLimit(1, "bodies are on their way in"), {"/small": most})
    await limits({"type": "http", "method": "POST", "path": "/small", "headers": sent}, receive, send)
    return read[0]


def read(messages: list[dict[str, Any]], **limits: Any) -> bytes:
    return asyncio.run(read_within(messages, **limits))


def test_pieces_are_put_together() -> None:
    assert read([PIECE, PIECE, END]) == b"123451234567"
    assert read([END]) == b"67"
    assert read([{"type": "http.request"}]) == b""


def test_a_body_longer_than_it_said_is_cut() -> None:
    with pytest.raises(ImageRejected, match="the body has more than 9 bytes"):
        read([PIECE, PIECE, END], most=9, headers={"content-length": "7"})


def test_a_body_that_announces_too_much_is_not_read() -> None:
    with pytest.raises(ImageRejected, match="the body has 101 bytes; at most 100 are accepted"):
        read([], headers={"content-length": "101"})


def test_a_caller_who_leaves_is_not_waited_for() -> None:
    with pytest.raises(ClientDisconnect):
        read([PIECE, GONE])


def test_a_body_that_does_not_come_whole_is_given_up() -> None:
    with pytest.raises(ApiError, match=r"the body did not arrive whole within 0\.05 s") as refused:
        read([PIECE])
    assert refused.value.status == 408


def test_a_body_beyond_those_that_may_arrive_at_once_is_refused_and_a_place_is_free_again_however_it_ended() -> None:
    async def several() -> None:
        admission = AdmissionLimit(1, "bodies are on their way in")
        first = asyncio.create_task(read_within([PIECE], admission=admission))
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="too many bodies are on their way in") as refused:
            await read_within([END], admission=admission)
        assert refused.value.status == 503
        with pytest.raises(ApiError):
            await first
        assert await read_within([END], admission=admission) == b"67"
        assert admission.in_use == 0

    asyncio.run(several())
