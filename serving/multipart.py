"""multipart/form-data (RFC 7578) of a body that is in memory: where its parts lie, found by their boundary.

The usual parsers are made for bodies that arrive piece by piece and call back for each, which was a good part of what HTTP cost a
photo's search. Tested against python-multipart.
"""

import re
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

MOST_HEAD = 4096
"""Bytes of a part's headers."""
BOUNDARY = re.compile(r'multipart/form-data; ?boundary=("?)([\w.=/+-]+)\1', re.ASCII)
DISPOSITION = re.compile(rb' ?form-data; ?name="([^"\\]*)"(; ?filename="[^"\\]*")?')
"""These headers as clients write them, which takes less than reading them as they may be written (docs/performance.md, "Serving")."""


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
    boundary = _boundary(content_type)
    if not boundary:
        raise MultipartError("its content type names no boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, most + 2)
    if len(pieces) > most + 2:
        raise MultipartError(f"it has more than {most} parts")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise MultipartError("it has no closing boundary")
    return [_part(piece) for piece in pieces[1:-1]]


def _boundary(content_type: str) -> bytes:
    usual = BOUNDARY.fullmatch(content_type)
    return usual[2].encode() if usual else parse_options_header(content_type)[1].get(b"boundary", b"")


def _part(piece: bytes) -> Part:
    start = piece.find(b"\r\n")
    end = piece.find(b"\r\n\r\n", start + 2)
    head = piece[start + 2 : end]
    if start < 0 or piece[:start].strip(b" \t") or end < 0 or len(head) > MOST_HEAD:
        raise MultipartError("a part has no headers")
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition" and (named := _named(value)) is not None:
            return Part(named[0].decode(errors="replace"), named[1], piece[end + 4 :])
    raise MultipartError("a part names no field")


def _named(disposition: bytes) -> tuple[bytes, bool] | None:
    """The field's name that a part's Content-Disposition gives, and whether there is a filename; None where it gives none."""
    if usual := DISPOSITION.fullmatch(disposition):
        return usual[1], usual[2] is not None
    kind, options = parse_options_header(disposition)
    return (options[b"name"], b"filename" in options) if kind == b"form-data" and b"name" in options else None
