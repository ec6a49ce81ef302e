"""A body is read piece by piece, never more of it than is allowed, and not waited for for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from serving.contract.preprocess import ImageRejected
from serving.problems import Refused
from serving.uploads import read_bytes

PIECE = {"type": "http.request", "body": b"12345", "more_body": True}
END = {"type": "http.request", "body": b"67"}
GONE = {"type": "http.disconnect"}


def read(messages: list[dict[str, Any]], most: int = 100, headers: dict[str, str] | None = None) -> bytes:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    answer: Callable[[], Awaitable[Any]] = receive
    sent = [(n.encode(), v.encode()) for n, v in (headers or {}).items()]
    request = Request({"type": "http", "method": "POST", "headers": sent}, answer)
    return asyncio.run(read_bytes(request, most, limit_s=0.05))


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
    with pytest.raises(Refused) as refused:
        read([PIECE])
    assert refused.value.status == 408
