"""Our reading of multipart/form-data against the usual parser's, and on bytes that are none."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from serving.multipart import BOUNDARY, DISPOSITION, MultipartError, Part, parts_of

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=8)
CONTENT = st.one_of(st.binary(max_size=200), st.sampled_from([b"", b"\r\n", b"--", b"\r\n--", b"\r\n\r\n", b"--x\r\n", b"\n--x"]))


def usual(body: bytes, content_type: str) -> list[Part]:
    """What Starlette's parser, which is python-multipart's, makes of a body."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    async def read() -> list[Part]:
        form = await MultiPartParser(Headers({"content-type": content_type}), stream()).parse()
        found = []
        for name, value in form.multi_items():
            whole = await value.read() if isinstance(value, UploadFile) else value.encode()
            found.append(Part(name, isinstance(value, UploadFile), whole))
        await form.close()
        return found

    return asyncio.run(read())


@given(st.lists(st.tuples(NAMES, CONTENT), max_size=3), st.lists(st.tuples(NAMES, st.text(max_size=50)), max_size=5))
def test_a_body_as_clients_write_it_has_the_parts_the_usual_parser_finds(
    files: list[tuple[str, bytes]], fields: list[tuple[str, str]]
) -> None:
    parts = [(name, (None, value)) for name, value in fields] + [(name, ("p.jpg", data)) for name, data in files]
    if not parts:
        return
    sent = httpx.Request("POST", "http://x", files=parts)
    kind = sent.headers["content-type"]
    body = sent.read()
    ours = parts_of(body, kind, most=11)
    assert ours == usual(body, kind)
    assert [(p.name, p.content) for p in ours if p.is_file] == files


@given(
    st.lists(
        st.sampled_from(
            [b"--x", b"--x--", b"\r\n", b"\n", b"a", b": ", b'Content-Disposition: form-data; name="k"', b"\xff", b";"]
        )
    )
)
def test_bytes_that_are_no_form_are_refused_and_nothing_else_happens(pieces: list[bytes]) -> None:
    try:
        found = parts_of(b"".join(pieces), "multipart/form-data; boundary=x", most=11)
    except MultipartError:
        return
    assert all(isinstance(p, Part) for p in found)


GAPS, INSIDE = st.sampled_from(["", " ", " ", "\t"]), st.text(st.sampled_from("ab1;,=%é \"\\'\t.*"), max_size=6)
NAMED = st.builds('{}form-data;{}name="{}"'.format, GAPS, GAPS, INSIDE)
FILED = st.builds('{};{}filename="{}"'.format, NAMED, GAPS, INSIDE)


@given(st.one_of(NAMED, FILED), st.sampled_from(["", "", " ", ";", '; name="b"']))
def test_a_disposition_that_is_read_the_quick_way_says_what_it_says_to_the_usual_parser(start: str, end: str) -> None:
    disposition = (start + end).encode()
    if quick := DISPOSITION.fullmatch(disposition):
        kind, options = parse_options_header(disposition)
        assert (kind, options[b"name"]) == (b"form-data", quick[1])
        assert (b"filename" in options) == (quick[2] is not None)


@given(st.lists(st.sampled_from(["multipart/form-data", "; ", ";", "boundary", "=", '"', "x-1", "_", "=", "\u00e9", "A"])))
def test_a_boundary_that_is_read_the_quick_way_is_the_usual_parsers(pieces: list[str]) -> None:
    kind = "".join(["multipart/form-data; boundary=", *pieces])
    if quick := BOUNDARY.fullmatch(kind):
        assert parse_options_header(kind)[1] == {b"boundary": quick[2].encode()}


def form(*parts: bytes, end: bytes = b"--x--") -> bytes:
    return b"".join(b"--x\r\n" + p + b"\r\n" for p in parts) + end


FIELD = b'Content-Disposition: form-data; name="k"\r\n\r\n5'


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (form(FIELD), "multipart/form-data", "names no boundary"),
        (form(FIELD, end=b""), "multipart/form-data; boundary=x", "no closing boundary"),
        (form(*[FIELD] * 12), "multipart/form-data; boundary=x", "more than 11 parts"),
        (form(b"no headers"), "multipart/form-data; boundary=x", "no headers"),
        (form(b"Content-Type: text/plain\r\n\r\n5"), "multipart/form-data; boundary=x", "names no field"),
        (form(b"X: " + b"y" * 5000 + b"\r\n" + FIELD), "multipart/form-data; boundary=x", "no headers"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, kind: str, says: str) -> None:
    with pytest.raises(MultipartError, match=says):
        parts_of(body, kind, most=11)


def test_a_preamble_an_epilogue_and_eleven_parts_are_fine() -> None:
    body = b"hello\r\n" + form(*[FIELD] * 11) + b"\r\nbye"
    assert [p.text() for p in parts_of(body, 'multipart/form-data; boundary="x"', most=11)] == ["5"] * 11


def test_words_that_are_not_utf8_are_said_to_be_none() -> None:
    with pytest.raises(MultipartError, match="the field text is not UTF-8"):
        Part("text", False, b"\xff").text()
