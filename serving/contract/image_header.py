"""Opens an image of a known format and checks its limits from its header, before a pixel is decoded."""

import importlib.util
import io
import re
import warnings
from functools import cache

from PIL import Image, UnidentifiedImageError, features

from serving.contract.frame_count import frames, gif_extensions, tiff_entries
from serving.contract.image_limits import ImageLimits, ImageRejected
from serving.contract.jpeg import START, count_scans
from serving.contract.png import SIGNATURE, without_ancillary

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
"""Formats that are always read. Pillow's parsers of other formats never see an image."""
TIFF_COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg")
"""Others are of scanners and faxes (group 3 and 4: 200 ms and a line of log for every damaged row) or rare."""
MAX_TIFF_ENTRIES = 1000
MAX_GIF_EXTENSIONS = 5000
"""Blocks of extensions before the first frame: Pillow joins comments in quadratic time."""
HEIC_BRANDS = rb"hei[cmsx]|hev[cmx]|mif1|msf1"
NAMES = (
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(" + HEIC_BRANDS + rb")", re.DOTALL), "HEIC"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE\s+svg[^>]*>\s*)?<svg[\s/>]", re.DOTALL), "SVG"),
    (re.compile(rb"\xff\x0a|....JXL \r\n", re.DOTALL), "JPEG XL"),
    (re.compile(rb"....jP  \r\n|\xff\x4f\xff\x51", re.DOTALL), "JPEG 2000"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "EPS"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb"P[1-7]\s"), "PPM"),
    (re.compile(rb"v/1\x01"), "OpenEXR"),
    (re.compile(rb"#\?RADIANCE"), "Radiance HDR"),
)
"""Formats that people send, by their first bytes."""
LOOK = 2048


@cache
def accepted_formats() -> tuple[str, ...]:
    """FORMATS, AVIF where Pillow reads it, and HEIF where pillow-heif is installed (extra `heic`)."""
    found = FORMATS + (("AVIF",) if features.check("avif") else ())
    if importlib.util.find_spec("pillow_heif") is None:
        return found
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*found, "HEIF")


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Opens an image without decoding it.

    Raises ImageRejected with a reason: not_an_image, format, truncated, too_many_pixels, too_many_frames, too_many_scans.
    """
    formats = accepted_formats()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(_parsable(data, limits)), formats=[f for f in formats if f != "MPO"])
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data, formats) from None
    except Image.DecompressionBombError:  # more than any replica takes, before its size could be read
        detail = f"the image has far too many pixels; at most {limits.max_pixels} are accepted"
        raise ImageRejected("too_many_pixels", detail) from None
    except Exception:  # Pillow raises many unrelated classes for headers that make no sense
        raise ImageRejected("truncated", "the image's header is damaged") from None
    _check_compression(picture)
    check_size(picture, limits)
    if frames(picture, data, limits.max_frames) > limits.max_frames:
        detail = f"the image has too many frames; at most {limits.max_frames} are accepted"
        raise ImageRejected("too_many_frames", detail)
    return picture


def check_scans(data: bytes, limits: ImageLimits) -> int:
    """The number of scans of a JPEG. Raises ImageRejected where it has too many, or is made to be parsed for long."""
    scans = count_scans(data, limits.max_scans)
    if scans is None:
        raise ImageRejected("truncated", "the image is damaged: it has thousands of segments, or what is no segment")
    if scans > limits.max_scans:
        detail = f"the image is a progressive JPEG of more than {limits.max_scans} scans, which is the most that is accepted"
        raise ImageRejected("too_many_scans", detail)
    return scans


def check_size(picture: Image.Image, limits: ImageLimits) -> None:
    """Raises ImageRejected where the picture has more pixels than are accepted of its kind."""
    width, height = picture.size
    photo = picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L")
    most = limits.max_pixels if photo else min(limits.max_pixels, limits.max_whole_pixels)
    if width * height > most:
        kind = f"{picture.format} in {picture.mode}"
        detail = f"the image is {width} x {height}; at most {most} pixels are accepted of a {kind}"
        raise ImageRejected("too_many_pixels", detail)


def _parsable(data: bytes, limits: ImageLimits) -> bytes:
    """The bytes that Pillow may parse: none that would take it long, nor chunks over which it refuses a good picture."""
    if data.startswith(START):
        check_scans(data, limits)
    elif data.startswith(SIGNATURE):
        plain = without_ancillary(data)
        if plain is None:
            raise ImageRejected("truncated", "the image is damaged: it has tens of thousands of chunks")
        return plain
    elif data.startswith(b"GIF8") and gif_extensions(data, MAX_GIF_EXTENSIONS) > MAX_GIF_EXTENSIONS:
        raise ImageRejected("truncated", "the image is damaged: it has thousands of comments before its first frame")
    elif data.startswith((b"II", b"MM")) and tiff_entries(data) > MAX_TIFF_ENTRIES:
        raise ImageRejected("truncated", "the image's header is damaged")
    return data


def _unidentified(data: bytes, formats: tuple[str, ...]) -> ImageRejected:
    """Names the format of bytes that no parser took, where it is a known one."""
    name = next((n for pattern, n in NAMES if pattern.match(data[:LOOK].removeprefix(b"\xef\xbb\xbf"))), "")
    if not name:
        return ImageRejected("not_an_image", "the bytes are not an image in a known format")
    if name in formats or (name == "HEIC" and "HEIF" in formats):
        return ImageRejected("truncated", f"the image's header is damaged ({name})")
    hint = "; this process lacks pillow-heif (the extra `heic`)" if name == "HEIC" else ""
    return ImageRejected("format", f"images of format {name} are not accepted{hint}; send one of {', '.join(formats)}")


def _check_compression(picture: Image.Image) -> None:
    compression = str(picture.info.get("compression", "raw"))
    if picture.format == "TIFF" and compression not in TIFF_COMPRESSIONS:
        known = ", ".join(name.removeprefix("tiff_") for name in TIFF_COMPRESSIONS)
        raise ImageRejected("format", f"TIFFs compressed by {compression} are not accepted; save it with one of {known}")
