"""Decodes image bytes to encoder input. The same function for training, batch, serving and evaluation.

The contract, by kind of image: EXIF orientation is applied; CMYK, palette, 16-bit and grey become 8-bit RGB, and so do grey floats
of 0 to 1; transparency lies on white; of an animation the first frame counts; damage that costs no pixel is passed over. Reduced JPEG
decoding and area resampling are part of the contract, since they change pixels by 0.4-0.6 grey levels (docs/benchmarks.md).
"""

import math
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from serving.contract.box import Box
from serving.contract.decode_cost import jpeg_cost, picture_cost
from serving.contract.files import FrozenModel
from serving.contract.image_header import check_scans, open_image
from serving.contract.image_limits import DEFAULT_LIMITS, CostlyImage, ImageLimits, ImageRejected
from serving.contract.jpeg import decode_jpeg, plain_size

ORIENTATION_TAG = 0x0112
LYING = 5
"""From this orientation on the stored rows are the upright image's columns."""
WHITE = (255, 255, 255)
STRIP = 256
"""Rows converted to RGB at a time: intermediates take a few megabytes, however large the picture is."""


class PreprocessSpec(FrozenModel):
    """How a picture becomes `size` x `size` pixels.

    squash: both sides to `size`; crop: the shorter side to `size`, then the centre; pad: the longer side, then white borders.
    """

    format: Literal[1] = 1
    size: int = Field(gt=0, le=1024)
    fit: Literal["squash", "crop", "pad"] = "squash"


def decode(data: bytes, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS, box: Box | None = None) -> np.ndarray:
    """Decodes image bytes, or what lies in a box of the upright image, to pixels (size, size, 3) uint8 RGB.

    A box of the whole image gives what no box gives, to the last bit. Raises ImageRejected with a reason: empty, too_many_bytes,
    not_an_image, format, too_many_pixels, too_many_frames, too_many_scans, truncated; and CostlyImage.
    """
    if not data:
        raise ImageRejected("empty", "the image has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageRejected("too_many_bytes", f"the image has {len(data)} bytes; at most {limits.max_bytes} are accepted")
    box = None if box is None or box.whole else box
    size = plain_size(data)
    if size is not None and size[0] * size[1] <= limits.max_pixels:
        return _frame(_cut(_plain(data, size, spec, limits, box), box), spec)
    picture = open_image(data, limits)
    _check_cost(picture_cost(picture, data), limits)
    try:
        orientation = _orientation(picture)
        width, height = picture.size
        least = _least(height, width, spec, box, limits, lies=orientation >= LYING)
        pixels = _cut(_pixels(data, picture, orientation, least), box)
    except ImageRejected:
        raise
    except Exception:  # Pillow raises many unrelated classes for bytes that make no sense
        raise _damaged() from None
    return _frame(pixels, spec)


def _plain(data: bytes, size: tuple[int, int], spec: PreprocessSpec, limits: ImageLimits, box: Box | None) -> np.ndarray:
    """The pixels of a JPEG that `plain_size` knows. Where it cannot be decoded, Pillow's look at its header says what is wrong."""
    _check_cost(jpeg_cost(*size, check_scans(data, limits)), limits)
    try:
        return decode_jpeg(data, _least(size[1], size[0], spec, box, limits))
    except ValueError:
        open_image(data, limits)
        raise _damaged() from None


def _damaged() -> ImageRejected:
    return ImageRejected("truncated", "the image is truncated or damaged")


def _check_cost(cost: float, limits: ImageLimits) -> None:
    if cost > limits.max_cost:
        raise CostlyImage(f"decoding costs as much as a JPEG of {cost:.3g} pixels")


def _pixels(data: bytes, picture: Image.Image, orientation: int, least: tuple[int, int]) -> np.ndarray:
    """Upright RGB pixels (h, w, 3) uint8; a JPEG is decoded no larger than needed to cover `least` = (height, width)."""
    if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        pixels = decode_jpeg(data, least)
    else:
        picture.seek(0)
        picture.load()
        orientation = _orientation(picture)  # Pillow has turned a TIFF already, and says so only now
        pixels = _whole(picture)
    if orientation == 1:
        return pixels
    turned = Image.fromarray(pixels)
    turned.getexif()[ORIENTATION_TAG] = orientation
    return np.asarray(ImageOps.exif_transpose(turned))


def _orientation(picture: Image.Image) -> int:
    """The Exif orientation, 1 to 8; 1 where it is none of these, or where the Exif block cannot be read, as every viewer takes it."""
    try:
        found = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises SyntaxError, struct.error and others; no pixel depends on it
        return 1
    return int(found) if found in range(1, 9) else 1


def _whole(picture: Image.Image) -> np.ndarray:
    """The RGB pixels (h, w, 3) of a decoded picture."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP):
        strip = picture.crop((0, top, width, min(top + STRIP, height)))
        strip.format = picture.format  # which an error names
        pixels[top : top + STRIP] = np.asarray(_to_rgb(strip))
    return pixels


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        return _unit_floats(np.asarray(picture))
    if picture.mode == "I":
        raise ImageRejected(
            "format",
            f"{picture.format}s of 32-bit integers are not accepted, as nothing says how bright they are; "
            "save it with 8 or 16 bits",
        )
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*WHITE, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _unit_floats(pixels: np.ndarray) -> Image.Image:
    """Grey pixels (h, w) float32, where 0 is black and 1 is white, as renderers write them. Raises ImageRejected for others."""
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise ImageRejected("format", "images of floating-point numbers are accepted from 0 to 1 only; save it with 8 or 16 bits")
    return Image.fromarray((255 * pixels).round().astype(np.uint8)).convert("RGB")


def _least(
    height: int, width: int, spec: PreprocessSpec, box: Box | None, limits: ImageLimits, lies: bool = False
) -> tuple[int, int]:
    """The least (height, width) that a JPEG of this stored size is decoded to: what is in the frame need not be enlarged.

    JPEGs are decoded at eighths of their size. In a large one a small box gets fewer than it needs, within `max_whole_pixels`.
    """
    if box is None:
        return _target(height, width, spec)
    rows, columns = box.height * (width if lies else height), box.width * (height if lies else width)
    target = _target(rows, columns, spec)
    eighths = min(8, math.ceil(8 * max(target[0] / rows, target[1] / columns)))
    while eighths > 1 and height * width * (eighths / 8) ** 2 > limits.max_whole_pixels:
        eighths -= 1
    return math.ceil(height * eighths / 8), math.ceil(width * eighths / 8)


def _cut(pixels: np.ndarray, box: Box | None) -> np.ndarray:
    """What lies in the box of upright pixels (h, w, 3)."""
    return pixels if box is None else pixels[box.slices(*pixels.shape[:2])]


def _target(height: float, width: float, spec: PreprocessSpec) -> tuple[int, int]:
    """The (height, width) that a whole picture is resized to."""
    if spec.fit == "squash":
        return spec.size, spec.size
    scale = spec.size / (min if spec.fit == "crop" else max)(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _frame(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """The picture in its frame (size, size, 3), contiguous. A crop is cut before it is resized: no strip grows huge."""
    h, w = pixels.shape[:2]
    if spec.fit == "crop":
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        return _resize(pixels[top : top + side, left : left + side], spec.size, spec.size)
    resized = _resize(pixels, *_target(h, w, spec))
    if spec.fit == "squash":
        return resized
    frame = np.full((spec.size, spec.size, 3), WHITE, np.uint8)
    h, w = resized.shape[:2]
    top, left = (spec.size - h) // 2, (spec.size - w) // 2
    frame[top : top + h, left : left + w] = resized
    return frame


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    if (h, w) == (height, width):
        return np.ascontiguousarray(pixels)
    shrinks = height <= h and width <= w
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
