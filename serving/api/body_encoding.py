"""Content-Encoding of request bodies: gzip is decoded within a bound; others are refused (RFC 9110, 15.5.16)."""

import zlib

from serving.api.errors import ApiError
from serving.contract.image_limits import ImageRejected
from serving.invalid_request import InvalidRequest

GZIP = 16 + zlib.MAX_WBITS
FREE_BYTES, MOST_TIMES = 1 << 20, 20
"""A decoded body may have FREE_BYTES, and beyond that MOST_TIMES as many bytes as were received. JSON of numbers and base64 shrink by
less; 14 MB of zeros, which gzip makes of 14 kB, would take the event loop 40 ms a request."""


class GzipBody:
    """Decodes the pieces of one gzip body."""

    def __init__(self) -> None:
        self.decoder, self.received, self.decoded = zlib.decompressobj(GZIP), 0, 0

    def decode(self, piece: bytes, last: bool) -> bytes:
        """The decoded bytes of a piece.

        Raises ImageRejected where they grow too many, InvalidRequest where this is not gzip, not whole, or goes on behind its end.
        """
        self.received += len(piece)
        left = max(FREE_BYTES, MOST_TIMES * self.received) - self.decoded
        try:
            found = self.decoder.decompress(piece, left + 1)
        except zlib.error:
            raise InvalidRequest("the body is not gzip, as its Content-Encoding says") from None
        if self.decoder.unused_data:  # zlib would keep, and copy again with every piece, all that follows
            raise InvalidRequest("the gzip body goes on behind its end; send it as one member")
        self.decoded += len(found)
        if len(found) > left:
            raise ImageRejected("too_many_bytes", f"the gzip body grows more than {MOST_TIMES} times; send it as it is")
        if last and not self.decoder.eof:
            raise InvalidRequest("the gzip body is not whole")
        return found


def body_decoder(content_encoding: str) -> GzipBody | None:
    """The decoder of a body; None where it is sent as it is. Raises ApiError(415) for an encoding that is not taken."""
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip"):
        detail = f"bodies of Content-Encoding {encoding[:40]!r} are not taken; send it as it is, or as gzip"
        raise ApiError(415, detail, "encoding", {"Accept-Encoding": "gzip, identity"})
    return GzipBody()
