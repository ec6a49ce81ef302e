"""What is accepted of an image, and the errors that say what is not."""

import math

from serving.contract.files import FrozenModel


class ImageRejected(Exception):
    """An image that is not accepted. `reason` is a short code for metrics, the message one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class CostlyImage(Exception):
    """An image within all limits whose decoding costs more than the caller wants to spend here; nothing was decoded."""


class ImageLimits(FrozenModel):
    """Limits checked before any pixel is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_whole_pixels: int = 64_000_000
    """Limit for images other than RGB or grey JPEGs, which cannot be decoded at a reduced size; and for what a small box in a JPEG
    is decoded at."""
    max_frames: int = 1000
    """Only the first is read."""
    max_scans: int = 64
    """Of a progressive JPEG; libjpeg writes 10. Every scan passes over all pixels: 49 million take up to 30 ms a scan, and an empty
    scan has 50 bytes."""
    max_cost: float = math.inf
    """Most that decoding may cost, in pixels of a baseline JPEG (2 ns each); beyond, CostlyImage is raised."""


DEFAULT_LIMITS = ImageLimits()
