"""Reads the size of a plain JPEG from its markers: most photos, for which Pillow's slower header parsing is not needed."""

START, SCAN, APP1, APP2 = b"\xff\xd8", 0xDA, 0xE1, 0xE2
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive (ITU-T T.81, table B.1)."""


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of an 8-bit grey or colour JPEG without orientation and further pictures; None for any other.

    Orientation is in Exif or XMP (APP1), further pictures in MPF (APP2).
    """
    if not data.startswith(START):
        return None
    at, size = 2, None
    while at + 10 <= len(data) and data[at] == 0xFF:
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
