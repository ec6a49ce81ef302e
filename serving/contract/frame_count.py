"""Counts the frames of an image file without decoding one.

Pillow's own counts of GIF and TIFF parse everything in between; these follow lengths and offsets, and stop beyond a limit.
"""

from typing import Literal

from PIL import Image

FRAME, EXTENSION, END = b",!;"
MAX_BLOCKS = 100_000
"""Most blocks of a GIF that are read (30 ms): 20 MiB in full blocks are 80,000. Frames after them are not counted."""


def frames(picture: Image.Image, data: bytes, most: int) -> int:
    """The number of frames or pages of an opened picture; any number above `most` where there are more."""
    if picture.format == "GIF":
        return _gif(data, most)
    if picture.format == "TIFF":
        return _tiff(data, most)
    return getattr(picture, "n_frames", 1)  # the others say it in their headers


def _gif(data: bytes, most: int) -> int:
    """Frames of a GIF89a: ',' starts a frame, '!' an extension; both end in a chain of blocks of up to 255 bytes, the last empty."""
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
    """The size in bytes of the colour table announced by the flags at this offset."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff(data: bytes, most: int) -> int:
    """Pages of a TIFF 6.0 or BigTIFF: each page's entries are followed by the offset of the next page."""
    order, wide, count, entry = _tiff_layout(data)
    found, page = 0, int.from_bytes(data[wide : 2 * wide], order)
    while page and found <= most:
        found += 1
        following = page + count + entry * int.from_bytes(data[page : page + count], order)
        page = int.from_bytes(data[following : following + wide], order)
    return found


def _tiff_layout(data: bytes) -> tuple[Literal["little", "big"], int, int, int]:
    """Byte order, and the bytes of an offset, of a page's count of entries, and of an entry."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    return (order, 8, 8, 20) if 43 in data[2:4] else (order, 4, 2, 12)


def tiff_entries(data: bytes) -> int:
    """The number of entries that the first page of a TIFF announces; 0 where there is no page."""
    order, wide, count, _ = _tiff_layout(data)
    page = int.from_bytes(data[wide : 2 * wide], order)
    return int.from_bytes(data[page : page + count], order)


def gif_extensions(data: bytes, most: int) -> int:
    """The number of blocks of a GIF's extensions before its first frame; any number above `most` where there are more."""
    at, blocks = 13 + _colours(data, 10), 0
    while at < len(data) and data[at] != FRAME and blocks <= most:
        blocks += 1
        if data[at] == EXTENSION:
            at += 2
            while at < len(data) and data[at] and blocks <= most:
                at, blocks = at + 1 + data[at], blocks + 1
        at += 1  # the empty block that ends the chain, or a byte that means nothing
    return blocks
