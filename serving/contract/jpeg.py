"""JPEG markers: the size of a plain photo and the number of scans, read before anything is decoded; and decoding.

Most photos are plain, and need not be parsed by Pillow, which is slower. Marker names are those of ITU-T T.81, table B.1.
"""

import re
from contextlib import suppress

import numpy as np
import simplejpeg

START, END, SCAN, PROGRESSIVE = b"\xff\xd8", 0xD9, 0xDA, 0xC2
APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE
JFIF_MAJOR, ADOBE_TRANSFORM = 9, 15
"""Places of these bytes in the segments APP0 and APP14."""
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive."""
NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
"""The next marker that starts a segment: neither a stuffed zero, nor fill, nor a restart. What lies before it is skipped, as libjpeg
does."""
MAX_SEGMENTS = 5000
"""Most segments of a JPEG. A profile of 16 MB has 255; 20 MB of empty comments would be five million, each parsed in Python."""
MAX_SKIPPED = 65_536
"""Most bytes between segments, which Pillow goes through one by one."""
WINDOW_BYTES = 65_536
COEFFICIENTS = 64
"""Of a block of 8 x 8 pixels."""
LOST = ("bad Huffman code", "bad arithmetic code", "instead of RST")
"""In libjpeg's warnings about pixels that are lost."""
FILLER = b"\x55\xaa" * 32


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of an 8-bit grey or colour JPEG without orientation and further pictures; None for any other.

    Orientation is in Exif or XMP (APP1), further pictures in MPF (APP2).
    """
    if not data.startswith(START):
        return None
    at, size = 2, None
    for _ in range(MAX_SEGMENTS):
        if at + 10 > len(data) or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == SCAN:
            return size
        if marker == APP1 or (marker == APP2 and data.startswith(b"MPF", at + 4)):
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: not tables, an extension, or conditioning
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            if size or marker not in FRAMES or data[at + 4] != 8 or not (width and height) or data[at + 9] not in (1, 3):
                return None
            size = width, height
        elif not (0xC4 <= marker <= 0xFE and length >= 2) or 0xD0 <= marker <= 0xD9:
            return None
        at += 2 + length
    return None


def count_scans(data: bytes, most: int) -> int | None:
    """The number of scans of a JPEG, any number above `most` where there are more.

    None: it has more than MAX_SEGMENTS segments, or more than MAX_SKIPPED bytes between them.
    """
    at, scans, skipped, in_scan = len(START), 0, 0, False
    for _ in range(MAX_SEGMENTS):
        found = _next_marker(data, at, len(data) if in_scan else at + MAX_SKIPPED + 2)
        skipped += 0 if in_scan else (found.start() if found else min(len(data), at + MAX_SKIPPED + 2)) - at
        if skipped > MAX_SKIPPED:
            return None
        if found is None or data[found.end() - 1] == END or scans > most:
            return scans
        in_scan = data[found.end() - 1] == SCAN
        scans += in_scan
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return None


def _next_marker(data: bytes, at: int, end: int) -> re.Match[bytes] | None:
    """The next marker before `end`. A search holds the interpreter's lock: 10 MB of 0xFF would stop all other threads for 0.2 s."""
    for start in range(at, min(end, len(data)), WINDOW_BYTES):
        if (found := NEXT_MARKER.search(data, start, min(end, start + WINDOW_BYTES + 1))) is not None:
            return found
    return None


def decode_jpeg(data: bytes, least: tuple[int, int]) -> np.ndarray:
    """RGB pixels (h, w, 3) uint8 at the smallest eighth of the size that covers `least` = (height, width).

    What libjpeg only warns about is accepted where no pixel is missing: parameters that do not matter, bytes between segments, no
    end marker after all scans. Raises ValueError in libjpeg's words.
    """
    with suppress(ValueError):
        return _decode(data, least)
    if _lacks_scans(data):
        raise ValueError("scans are missing")
    mended = _mended(data)
    try:
        return _decode(mended, least)
    except ValueError as error:
        if any(words in str(error) for words in LOST):
            raise
    pixels = _decode(mended, least, strict=False)
    if not np.array_equal(pixels, _decode(_mended(data, FILLER), least, strict=False)):
        raise ValueError("pixels are missing")
    return pixels


def _decode(data: bytes, least: tuple[int, int], strict: bool = True) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1], strict=strict)


def _lacks_scans(data: bytes) -> bool:
    """Whether the file ends, without an end marker, before every bit of every coefficient was in a scan: it was cut between scans.

    libjpeg decodes what is there: greys where a colour component is missing, blocks of 8 x 8 where details are.
    """
    at, left, progressive = len(START), dict[int, np.ndarray](), False
    while (found := _next_marker(data, at, len(data))) is not None:
        marker, start = data[found.end() - 1], found.end()
        at = start + int.from_bytes(data[start : start + 2])
        if marker == END:
            return False
        if marker in FRAMES and not left:
            left, progressive = {c: np.full(COEFFICIENTS, 99) for c in data[start + 8 : at : 3]}, marker == PROGRESSIVE
        elif marker == SCAN and left and start + 3 < at <= len(data):
            count, (first, last, bits) = data[start + 2], data[at - 3 : at]
            band = slice(first, last + 1) if progressive else slice(None)
            for component in data[start + 3 : start + 3 + 2 * count : 2]:
                if component in left:
                    left[component][band] = bits & 15
    return any(bits.any() for bits in left.values())


def _mended(data: bytes, filler: bytes = b"") -> bytes:
    """The file without what libjpeg warns about in its header, and with `filler` at the end of every scan's coded data.

    Decoding needs the filler only where coded data is missing. libjpeg itself reports no more than its first warning, and makes what is
    missing grey.
    """
    parts, at, in_scan = [START], len(START), False
    while (found := _next_marker(data, at, len(data))) is not None:
        if in_scan:  # coded data never ends in 0xFF; what lies between other segments is left out
            parts += [data[at : found.start()].rstrip(b"\xff"), filler]
        marker, start, at = data[found.end() - 1], found.start(), found.end()
        if marker == END:
            return b"".join([*parts, data[start:at]])
        at += int.from_bytes(data[at : at + 2])
        parts.append(_known(data[start:at]))
        in_scan = marker == SCAN
    return b"".join([*parts, data[at:].rstrip(b"\xff") if in_scan else b"", filler, bytes((0xFF, END))])


def _known(segment: bytes) -> bytes:
    """A segment that says what libjpeg takes an unknown JFIF revision, or an unknown Adobe transform, for."""
    if segment.startswith(b"JFIF\0", 4) and segment[1] == APP0 and len(segment) > JFIF_MAJOR:
        return segment[:JFIF_MAJOR] + b"\1" + segment[JFIF_MAJOR + 1 :]
    if segment.startswith(b"Adobe", 4) and segment[1] == APP14 and len(segment) > ADOBE_TRANSFORM:
        known = segment[ADOBE_TRANSFORM] in (0, 1, 2)
        return segment if known else segment[:ADOBE_TRANSFORM] + b"\1" + segment[ADOBE_TRANSFORM + 1 :]
    return segment
