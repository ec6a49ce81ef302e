"""Good pictures are shown, whatever libraries warn about; what lacks pixels, or does not say how bright it is, is refused by name."""

import io
import re
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from serving.contract.image_header import accepted_formats
from serving.contract.image_limits import CostlyImage, ImageLimits, ImageRejected
from serving.contract.preprocess import PreprocessSpec, decode

SPEC = PreprocessSpec(size=64)
BLOCKS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
SCENE = Image.fromarray(BLOCKS).resize((160, 120), Image.Resampling.NEAREST)


def encoded(kind: str, picture: Image.Image = SCENE, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, limits: ImageLimits | None = None) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode(data, SPEC, limits or ImageLimits())
    return caught.value.reason


KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "full": {"subsampling": 0},
}


def warned(good: bytes) -> dict[str, bytes]:
    """The same JPEG with what libjpeg warns about and every viewer shows."""
    tables, scan = good.index(b"\xff\xdb"), good.index(b"\xff\xda")
    last = scan + 2 + int.from_bytes(good[scan + 2 : scan + 4]) - 2
    revision = good.index(b"JFIF\0") + 5
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x05"
    return {
        "a last coefficient that is none": good[:last] + b"\0" + good[last + 1 :] if b"\xff\xc0" in good else good,
        "bytes before a marker": good[:tables] + bytes(3) + good[tables:],
        "fill before a marker": good[:scan] + b"\xff" * 3 + good[scan:],
        "an unknown revision": good[:revision] + b"\3" + good[revision + 1 :],
        "an unknown transform": good[:20] + adobe + good[20:],
        "no end": good[:-2],
        "bytes before the end": good[:-2] + b"from a scanner" + good[-2:],
        "bytes after the end": good + b"x" * 100,
        "two of them": good[:tables] + bytes(3) + good[tables:-2] + b"from a scanner" + good[-2:],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_with_all_its_pixels_is_shown_whatever_libjpeg_warns_about(kind: str) -> None:
    good = encoded("JPEG", quality=90, **KINDS[kind])
    expected = decode(good, SPEC)
    for name, data in warned(good).items():
        assert np.array_equal(decode(data, SPEC), expected), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_jpeg_that_lacks_pixels_is_refused_with_an_end_pasted_on_and_behind_other_warnings_too(kind: str, share: float) -> None:
    good = encoded("JPEG", quality=90, **KINDS[kind])
    tables = good.index(b"\xff\xdb")
    for data in (good, good[:tables] + bytes(3) + good[tables:]):
        cut = data[: int(len(data) * share)]
        assert [reason(cut), reason(cut + b"\xff\xd9")] == ["truncated"] * 2


def test_a_jpeg_that_was_cut_between_scans_is_refused_as_details_or_colours_are_missing() -> None:
    progressive = encoded("JPEG", quality=90, progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", progressive)]
    assert len(starts) > 5
    assert [reason(progressive[:start]) for start in starts] == ["truncated"] * len(starts)
    assert np.array_equal(decode(progressive[:-2], SPEC), decode(progressive, SPEC)), "only the end marker is missing"
    in_scans = unlaced(encoded("JPEG", quality=90, subsampling=0))
    cuts = [found.start() for found in re.finditer(rb"\xff\xda", in_scans)]
    assert np.array_equal(decode(in_scans[:-2], SPEC), decode(in_scans, SPEC))
    assert [reason(in_scans[:cut]) for cut in cuts] == ["truncated"] * 3


def unlaced(good: bytes) -> bytes:
    """A baseline JPEG whose three components come one after the other, each the first one's scan."""
    grey = encoded("JPEG", SCENE.convert("L"), quality=90)
    scan = grey[grey.index(b"\xff\xda") + 10 : -2]
    head = good[: good.index(b"\xff\xda")]
    parts = [b"\xff\xda\0\x08\1" + bytes((component, 0, 0, 63, 0)) + scan for component in (1, 2, 3)]
    return head + b"".join(parts) + b"\xff\xd9"


def test_a_progressive_jpeg_has_a_limit_of_scans_that_thumbnails_do_not_count_against() -> None:
    good = encoded("JPEG", quality=90, progressive=True)
    last = good.rindex(b"\xff\xda")
    many = good[:-2] + good[last:-2] * 300 + good[-2:]
    assert reason(many) == "too_many_scans"
    assert reason(good, ImageLimits(max_scans=9)) == "too_many_scans"
    thumbnail = b"\xff\xed" + struct.pack(">H", 2 + 12 * 40) + b"\xff\xda" * 240
    assert np.array_equal(decode(good[:2] + thumbnail + good[2:], SPEC, ImageLimits(max_scans=10)), decode(good, SPEC))
    exif = b"\xff\xe1\0\x08Exif\0\0"  # not a plain one
    assert reason(good[:2] + exif + good[2:], ImageLimits(max_scans=9)) == "too_many_scans"


def chunk(kind: bytes, body: bytes, right: bool = True) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (0 if right else 1))


ODD_CHUNKS = {
    "a long text": chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
    "a text that grows": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 90_000_000)),
    "a long international text": chunk(b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 3_000_000),
    "a profile that grows": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000))),
    "a wrong checksum of a text": chunk(b"tEXt", b"a\0b", right=False),
    "a wrong checksum of a size": chunk(b"pHYs", bytes(9), right=False),
    "a wrong checksum of an orientation": chunk(b"eXIf", b"MM\0*\0\0\0\x08", right=False),
    "a size that is too short": chunk(b"pHYs", b"1"),
    "many texts": chunk(b"tEXt", b"a\0" + b"b" * 1000) * 5000,
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_a_png_is_shown_whatever_its_chunks_without_pixels_hold(name: str) -> None:
    good = encoded("PNG")
    header_end, end = 33, good.index(b"IEND") - 4
    for at in (header_end, end):
        assert np.array_equal(decode(good[:at] + ODD_CHUNKS[name] + good[at:], SPEC), decode(good, SPEC))


def test_what_changes_a_pngs_pixels_is_kept() -> None:
    clear = Image.new("P", (20, 20), 1)
    clear.putpalette([0, 0, 0, 250, 0, 0])
    exif = Image.Exif()
    exif[0x112] = 6
    assert (decode(encoded("PNG", clear, transparency=1), SPEC) == 255).all()
    turned = decode(encoded("PNG", exif=exif), SPEC)
    assert np.array_equal(turned, decode(encoded("PNG", SCENE.transpose(Image.Transpose.ROTATE_270)), SPEC))


RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))


@pytest.mark.parametrize(
    ("pixels", "taken"),
    [
        (RAMP, True),
        (255 * RAMP, False),
        (np.where(RAMP > 0.5, np.nan, RAMP), False),
        ((255 * RAMP).astype(np.int32), False),
        ((2**31 * RAMP.astype(float) - 1).astype(np.int32), False),
        ((65_535 * RAMP).astype(np.uint16), True),
        ((255 * RAMP).astype(np.uint8), True),
    ],
    ids=["float to 1", "float to 255", "NaN", "int32 to 255", "int32", "uint16", "uint8"],
)
def test_a_tiff_of_numbers_keeps_its_brightness_or_is_refused(pixels: np.ndarray, taken: bool) -> None:
    data = encoded("TIFF", Image.fromarray(pixels))
    if taken:
        assert np.abs(decode(data, SPEC)[..., 0].astype(float) - 255 * RAMP).max() <= 1.01
    else:
        assert reason(data) == "format"


@pytest.mark.parametrize("kind", [5, 2, 7, 12])
def test_a_tiffs_header_that_makes_no_sense_is_the_senders_fault(kind: int) -> None:
    data = bytearray(encoded("TIFF"))
    at = int.from_bytes(data[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        spoilt = bytearray(data)
        spoilt[entry + 2 : entry + 12] = struct.pack("<HII", kind, 1, 8)
        with suppress(ImageRejected):  # any of its reasons, and no other error
            decode(bytes(spoilt), SPEC)


def test_compressions_of_faxes_and_rare_ones_are_refused_before_they_are_decoded() -> None:
    fax = Image.new("1", (64, 64))
    for compression in ("group3", "group4", "tiff_ccitt"):
        data = encoded("TIFF", fax, compression=compression)
        with pytest.raises(ImageRejected, match=f"compressed by {compression}") as caught:
            decode(data, SPEC)
        assert caught.value.reason == "format"
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        assert decode(encoded("TIFF", compression=compression), SPEC).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<svg/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "PSD"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"P6 4 4 255\n", "PPM"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(ImageRejected, match=name) as caught:
        decode(data + bytes(100), SPEC)
    assert caught.value.reason == ("truncated" if name == "HEIC" and "HEIF" in accepted_formats() else "format")


@pytest.mark.skipif("AVIF" not in accepted_formats(), reason="Pillow without libavif")
def test_avif_is_read_where_pillow_does() -> None:
    found = decode(encoded("AVIF", quality=95), SPEC).astype(int)
    assert np.abs(found - decode(encoded("PNG"), SPEC)).mean() < 12


@pytest.mark.skipif("HEIF" not in accepted_formats(), reason="the extra heic is not installed")
def test_heic_is_read_with_the_extra() -> None:
    found = decode(encoded("HEIF", quality=95), SPEC).astype(int)
    assert np.abs(found - decode(encoded("PNG"), SPEC)).mean() < 12


def costly() -> dict[str, bytes]:
    """Small files whose headers would keep a parser busy for seconds."""
    png, jpeg, gif = encoded("PNG"), encoded("JPEG"), encoded("GIF")
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + struct.pack("<HHII", 700, 1, 1, 1) * 65_535
    return {
        "empty chunks": png[:33] + chunk(b"aaAa", b"") * 500_000 + png[33:],
        "empty segments": jpeg[:20] + b"\xff\xfe\0\2" * 1_000_000 + jpeg[20:],
        "fill": b"\xff\xd8" + b"\xff" * 5_000_000 + b"\0" * 100,
        "comments of one byte": gif[:13] + b"!\xfe" + b"\1c" * 2_000_000 + b"\0" + gif[13:],
        "entries": tiff,
    }


@pytest.mark.timeout(20)
def test_headers_made_to_be_parsed_for_long_are_refused() -> None:
    for name, data in costly().items():
        assert reason(data) in ("truncated", "not_an_image"), name


def test_what_costs_more_than_is_wanted_here_is_told_before_it_is_decoded() -> None:
    cheap = ImageLimits(max_cost=SCENE.width * SCENE.height)
    assert decode(encoded("JPEG"), SPEC, cheap).shape == (64, 64, 3)
    for data in (encoded("PNG"), encoded("JPEG", progressive=True), encoded("WEBP"), encoded("TIFF", compression="tiff_lzw")):
        with pytest.raises(CostlyImage):
            decode(data, SPEC, cheap)


def exif(kind: int, value: bytes) -> bytes:
    """An Exif block whose orientation is of this type."""
    entry = struct.pack("<HHI", 0x112, kind, 1) + value
    return b"Exif\0\0II" + struct.pack("<HIH", 42, 8, 1) + entry + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_none_and_an_exif_block_that_cannot_be_read_turn_nothing(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(encoded(kind, **options), SPEC)
    odd = {
        "a text": exif(2, b"6\0\0\0"), "a byte": exif(1, b"\6\0\0\0"), "undefined": exif(7, b"\6\0\0\0"),
        "zero": exif(3, bytes(4)), "nine": exif(3, b"\x09\0\0\0"), "no Exif": b"Exif\0\0garbage", "cut": b"Exif\0\0II*\0",
    }  # fmt: skip
    for name, block in odd.items():
        found = decode(encoded(kind, exif=block, **options), SPEC).astype(int)
        assert np.abs(found - plain).max() <= 2, name
