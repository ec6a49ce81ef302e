"""The box around the product in a labelled photo: four columns of `photos`, then a part of the photo's address.

The address carries it as a media fragment (W3C Media Fragments URI 1.0: photo.jpg#xywh=percent:25,10,50,60), so whoever reads the
address reads what is in the box (tasks/embed/images.py), whatever the photo is read for.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from serving.contract.box import Box
from serving.contract.image_header import open_image
from serving.contract.image_limits import ImageLimits, ImageRejected

BOX_COLUMNS = {"box_x": "x", "box_y": "y", "box_width": "width", "box_height": "height"}
"""Columns of `photos`, and the box's own names for them."""
MARK = "#xywh=percent:"
NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?"
FRAGMENT = re.compile(rf"{MARK}({NUMBER}),({NUMBER}),({NUMBER}),({NUMBER})$")
QUALITY = 95


def box_of(row: Mapping[str, Any]) -> Box | None:
    """The box that a row of `photos` states; None where it states none. Raises ValueError with what is wrong."""
    given: dict[str, Any] = {name: row.get(name) for name in BOX_COLUMNS}
    missing = [name for name, value in given.items() if value is None or value == ""]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: a box needs {', '.join(BOX_COLUMNS)}, or none of them")
    try:
        box = Box(**{BOX_COLUMNS[name]: float(value) for name, value in given.items()})
    except ValueError:
        stated = ", ".join(f"{name} {value}" for name, value in given.items())
        raise ValueError(f"{stated}: give shares of the photo's width and height, from 0 to 1") from None
    if outside := box.outside():
        raise ValueError(outside)
    return None if box.whole else box


def with_box(uri: str, box: Box | None) -> str:
    """The photo's address with its box; as it is without one."""
    if box is None:
        return uri
    return uri + MARK + ",".join(f"{100 * value:.9g}" for value in (box.x, box.y, box.width, box.height))


def split_box(uri: str) -> tuple[str, Box | None]:
    """Address of a photo, and the box in it, if it has one."""
    found = FRAGMENT.search(uri)
    if found is None:
        return uri, None
    x, y, width, height = (float(number) / 100 for number in found.groups())
    try:
        return uri[: found.start()], Box(x=x, y=y, width=width, height=height)
    except ValueError:  # not a box: a file may be called like one
        return uri, None


def cut_out(data: bytes, box: Box, limits: ImageLimits) -> bytes:
    """What lies in the box of the upright photo, as a JPEG. Raises ImageRejected."""
    picture = open_image(data, limits)
    try:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        done = io.BytesIO()
        Image.fromarray(upright[box.slices(*upright.shape[:2])]).save(done, "JPEG", quality=QUALITY, subsampling=0)
    except Exception:  # Pillow raises many unrelated classes for bytes that make no sense
        raise ImageRejected("truncated", "the image is damaged") from None
    return done.getvalue()
