"""A body is read piece by piece, never more of it than is allowed, not waited for for ever, and only so many at once."""

import asyncio
import gzip
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from serving.api.body_limits import BodyLimits
from serving.api.errors import ApiError
from serving.api.upload_places import GRACE_S, Upload, UploadPlaces
from serving.contract.preprocess import ImageRejected

PIECE = {"type": "http.request", "body": b"12345", "more_body": True}
END = {"type": "http.request", "body": b"67"}
GONE = {"type": "http.disconnect"}


async def read_within(
    messages: list[dict[str, Any]],
    most: int = 100,
    headers: dict[str, str] | None = None,
    places: UploadPlaces | None = None,
    limit_s: float = 60,
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
    limits = BodyLimits(app, 100, limit_s, places or UploadPlaces(1), {"/small": most})
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
        read([PIECE], limit_s=0.05)
    assert refused.value.status == 408


def test_a_body_beyond_those_that_may_arrive_at_once_is_refused_and_a_place_is_free_again_however_it_ended() -> None:
    async def several() -> None:
        places = UploadPlaces(1)
        loop = asyncio.get_running_loop()
        with places.admit(Upload("a", loop.time() + 60, loop.time() + 120)):
            with pytest.raises(ApiError, match="too many photos are on their way in") as refused:
                await read_within([END], places=places)
            assert refused.value.status == 503
        with pytest.raises(ApiError):
            await read_within([PIECE], places=places, limit_s=0.05)
        with pytest.raises(ClientDisconnect):
            await read_within([GONE], places=places)
        assert await read_within([END], places=places) == b"67"
        assert places.in_use == 0

    asyncio.run(several())


def test_a_small_body_needs_no_place() -> None:
    async def several() -> None:
        places = UploadPlaces(1)
        loop = asyncio.get_running_loop()
        with places.admit(Upload("a", loop.time() + 60, loop.time() + 120)):
            assert await read_within([END], places=places, headers={"content-length": "2"}) == b"67"

    asyncio.run(several())


@pytest.mark.parametrize(("limit", "share"), [(3, 1.0), (6, 0.5)], ids=["of all", "of one address"])
def test_where_all_places_are_taken_the_slowest_of_the_old_ones_gives_up_its_own(limit: int, share: float) -> None:
    async def several() -> None:
        loop = asyncio.get_running_loop()
        places, now = UploadPlaces(limit, share), loop.time()
        old = [Upload("a", now - 2 * GRACE_S, now + 120, received) for received in (500, 3, 900)]
        with ExitStack() as held:
            for upload in old:
                held.enter_context(places.admit(upload))
            new = Upload("a", now + 60, now + 120)
            held.enter_context(places.admit(new))
            assert places.uploads == {old[0], old[2], new}
            assert [u.deadline <= loop.time() for u in old] == [False, True, False]
            with places.admit(Upload("b", now + 60, now + 120)) if share < 1 else nullcontext():
                held.enter_context(places.admit(Upload("a", now + 60, now + 120)))
                held.enter_context(places.admit(Upload("a", now + 60, now + 120)))
                with pytest.raises(ApiError, match="too many photos are on their way in"), places.admit(Upload("a", now, now)):
                    pass
        assert places.in_use == 0

    asyncio.run(several())


def test_who_gave_up_a_place_is_told_so_at_once() -> None:
    async def several() -> None:
        places = UploadPlaces(1)
        first = asyncio.create_task(read_within([PIECE], places=places))
        while not places.in_use:
            await asyncio.sleep(0.01)
        next(iter(places.uploads)).began -= 2 * GRACE_S
        assert await read_within([END], places=places) == b"67"
        with pytest.raises(ApiError, match="too slowly while many others were waiting") as refused:
            await first
        assert refused.value.status == 408

    asyncio.run(several())


GZIP = {"content-encoding": "gzip"}


def pieces(data: bytes, size: int) -> list[dict[str, Any]]:
    cut = [data[n : n + size] for n in range(0, len(data), size)]
    return [{"type": "http.request", "body": c, "more_body": n + 1 < len(cut)} for n, c in enumerate(cut)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_gzip_body_is_decoded(size: int) -> None:
    body = bytes(range(90))
    for encoding in ("gzip", "GZIP", "x-gzip", " gzip"):
        assert read(pieces(gzip.compress(body), size), headers={"content-encoding": encoding}) == body
    assert read([END], headers={"content-encoding": "identity"}) == b"67"


def test_a_gzip_body_is_bounded_by_what_comes_out_and_by_how_much_it_grows() -> None:
    with pytest.raises(ImageRejected, match="more than 100 bytes"):
        read(pieces(gzip.compress(bytes(101)), 1000), headers=GZIP)
    bomb = gzip.compress(bytes(50 * 2**20))
    with pytest.raises(ImageRejected, match="grows more than 20 times"):
        read(pieces(bomb, 65_536), headers=GZIP, most=2**30)
    with pytest.raises(ValueError, match="not whole"):
        read(pieces(gzip.compress(b"abc")[:-5], 1000), headers=GZIP)
    with pytest.raises(ValueError, match="is not gzip"):
        read([PIECE], headers=GZIP)


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_another_encoding_is_refused_with_those_that_are_taken(encoding: str) -> None:
    with pytest.raises(ApiError, match=f"Content-Encoding {encoding!r} are not taken") as refused:
        read([PIECE], headers={"content-encoding": encoding})
    assert (refused.value.status, refused.value.headers) == (415, {"Accept-Encoding": "gzip, identity"})


def test_nothing_may_follow_a_gzip_body_and_what_is_received_counts_too() -> None:
    whole = gzip.compress(b"{}")
    for follows in (whole, b"garbage", bytes(1)):
        with pytest.raises(ValueError, match="goes on behind its end"):
            read(pieces(whole + follows, 1000), headers=GZIP)
    with pytest.raises(ValueError, match="goes on behind its end"):
        read([{"type": "http.request", "body": whole, "more_body": True}, PIECE], headers=GZIP)
    comment = b"\x1f\x8b\x08\x10" + bytes(6) + b"a comment without an end" * 3000  # decodes to nothing
    with pytest.raises(ImageRejected, match="the body has more than 100 bytes"):
        read(pieces(comment, 5000), headers=GZIP)


def test_a_small_gzip_body_needs_a_place() -> None:
    async def second() -> None:
        places = UploadPlaces(1)
        with places.admit(Upload("a", asyncio.get_running_loop().time() + 60, 1e9)):
            await read_within([END], headers={"content-length": "2"}, places=places)
            with pytest.raises(ApiError, match="photos are on their way"):
                await read_within([END], headers=GZIP | {"content-length": "2"}, places=places)

    asyncio.run(second())
