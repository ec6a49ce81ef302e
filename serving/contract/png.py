"""Takes the chunks that change no pixel out of a PNG, before a library parses them.

Text, colour profiles and physical sizes are read by Pillow and used by nobody here. It refuses a whole picture for a wrong checksum
in one of them, or for a long text. Chunks are those of the PNG specification, section 11.
"""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
"""Ancillary chunks that matter: transparency, orientation, and the frames of an animation."""
XMP = b"XML:com.adobe.xmp\0\0"
"""The start of an uncompressed iTXt chunk that may hold an orientation."""
MAX_XMP_BYTES = 1 << 20
MAX_CHUNKS = 30_000
"""Most chunks of a PNG; Pillow parses each in Python. 20 MB in chunks of 1 kB are 20,000."""


def without_ancillary(data: bytes) -> bytes | None:
    """The PNG with its critical chunks and those of KEPT whose checksums are right. None: it has more than MAX_CHUNKS chunks."""
    parts: list[bytes] = []
    start, at = 0, len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            return b"".join([*parts, data[start:]])
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind[0] & 0x20 and end <= len(data) and not _matters(data, kind, at, end):
            parts.append(data[start:at])
            start = end
        at = end
        if kind == b"IEND":
            return b"".join([*parts, data[start:end]])
    return None


def _matters(data: bytes, kind: bytes, at: int, end: int) -> bool:
    """Whether the ancillary chunk at data[at:end] is one that can change pixels, and whole."""
    oriented = kind == b"iTXt" and data.startswith(XMP, at + 8) and end - at <= MAX_XMP_BYTES
    kept = oriented or kind in KEPT
    return kept and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
