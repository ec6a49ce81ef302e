"""How many pictures a file holds, counted without decoding one.

Pillow's own counts of GIF and TIFF parse whatever lies between; these follow lengths and offsets, and stop once there are too many.
"""

from typing import Literal

from PIL import Image

FRAME, EXTENSION, END = b",!;"
MAX_BLOCKS = 100_000
"""Of a GIF no more blocks are looked at (30 ms): 20 MiB in full blocks are 80,000. What comes after them is not counted."""


def frames(picture: Image.Image, data: bytes, most: int) -> int:
    """The frames or pages of an opened picture; where there are more than `most`, some number above it."""
    if picture.format == "GIF":
        return _gif(data, most)
    if picture.format == "TIFF":
        return _tiff(data, most)
    return getattr(picture, "n_frames", 1)  # the others say it in their headers


def _gif(data: bytes, most: int) -> int:
    """By GIF89a: ',' begins a frame, '!' an extension; both end in a chain of blocks of up to 255 bytes, the last one empty."""
    at, found, chained = 13 + _colours(data, 10), 0, False
    for _ in range(MAX_BLOCKS):
        if at >= len(data) or found > most:
            break
        first = data[at]
        if chained:
            at, chained = at + 1 + first, first > 0
        elif first == FRAME:
            at, chained, found = at + 11 + _colours(data, at + 9), True, found + 1
        elif first == EXTENSION:
            at, chained = at + 2, True
        elif first == END:
            break
        else:
            at += 1  # as Pillow does
    return found


def _colours(data: bytes, at: int) -> int:
    """How many bytes the colours take that the flags at this place announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff(data: bytes, most: int) -> int:
    """By TIFF 6.0 and BigTIFF: a page's entries are followed by where the next page is."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    wide, count, entry = (8, 8, 20) if 43 in data[2:4] else (4, 2, 12)
    found, page = 0, int.from_bytes(data[wide : 2 * wide], order)
    while page and found <= most:
        found += 1
        following = page + count + entry * int.from_bytes(data[page : page + count], order)
        page = int.from_bytes(data[following : following + wide], order)
    return found
