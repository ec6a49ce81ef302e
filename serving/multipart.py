"""multipart/form-data (RFC 7578) of a body that is in memory: where its parts lie, found by their boundary.

The usual parsers are made for bodies that arrive piece by piece and call back for each, which was a good part of what HTTP cost a
photo's search. Tested against python-multipart.
"""

from dataclasses import dataclass
from itertools import pairwise

from python_multipart.multipart import parse_options_header

MOST_HEAD = 4096
"""Bytes of a part's headers."""


class MultipartError(Exception):
    """A body that is not multipart/form-data; the message says what is wrong with it."""


@dataclass(frozen=True)
class Part:
    """A field's name and content. `is_file`: it was sent with a filename."""

    name: str
    is_file: bool
    content: bytes

    def text(self) -> str:
        """Raises MultipartError where it is not UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError:
            raise MultipartError(f"the field {self.name} is not UTF-8") from None


def parts_of(body: bytes, content_type: str, most: int) -> list[Part]:
    """The parts of a body, at most `most` of them. What stands before the first and after the last boundary is ignored."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise MultipartError("its content type names no boundary")
    mark = b"\r\n--" + boundary
    places = _places(body, mark, most + 2)
    if len(places) > most + 1:
        raise MultipartError(f"it has more than {most} parts")
    if not places or not body.startswith(b"--", places[-1] + len(mark)):
        raise MultipartError("it has no closing boundary")
    return [_part(body, start + len(mark), stop) for start, stop in pairwise(places)]


def _places(body: bytes, mark: bytes, most: int) -> list[int]:
    """Where the marks begin, at most so many; -2 where the body begins with one, which needs no line's end before it."""
    places = [-2] if body.startswith(mark[2:]) else []
    at = body.find(mark)
    while at >= 0 and len(places) < most:
        places.append(at)
        at = body.find(mark, at + len(mark))
    return places


def _part(body: bytes, start: int, stop: int) -> Part:
    """The part that begins after a mark and ends before the next; only its content is copied, once."""
    line = body.find(b"\r\n", start, stop)
    end = body.find(b"\r\n\r\n", line + 2, stop)
    if line < 0 or body[start:line].strip(b" \t") or end < 0 or end - line - 2 > MOST_HEAD:
        raise MultipartError("a part has no headers")
    for head in body[line + 2 : end].split(b"\r\n"):
        key, _, value = head.partition(b":")
        if key.strip().lower() == b"content-disposition":
            kind, options = parse_options_header(value)
            if kind == b"form-data" and b"name" in options:
                return Part(options[b"name"].decode(errors="replace"), b"filename" in options, body[end + 4 : stop])
    raise MultipartError("a part names no field")
