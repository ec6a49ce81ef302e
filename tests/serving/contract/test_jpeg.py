"""The quick look at a JPEG's markers against Pillow's: the same size, and the same pixels or refusal, whatever the bytes."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from serving.contract import preprocess
from serving.contract.jpeg import plain_size
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode

SPEC = PreprocessSpec(size=48, fit="crop")


def picture(mode: str = "RGB", size: tuple[int, int] = (90, 61)) -> Image.Image:
    width, height = size
    waves = np.add.outer(np.sin(np.arange(height) / 7), np.cos(np.arange(width) / 5))
    grey = Image.fromarray((60 * (waves + 2)).astype(np.uint8))
    return Image.merge("RGB", (grey, grey.rotate(180), grey)).convert(mode)


def jpeg(one: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    one.save(stream, "JPEG", **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[preprocess.ORIENTATION_TAG] = 6
    return exif


PLAIN = {
    "colour": jpeg(picture()),
    "grey": jpeg(picture("L")),
    "progressive": jpeg(picture(), progressive=True),
    "every sample": jpeg(picture(), subsampling=0, quality=98),
    "an own profile": jpeg(picture(), icc_profile=b"p" * 70_000),
    "a comment": jpeg(picture(), comment=b"from a shop"),
    "restarts": jpeg(picture(), restart_marker_blocks=2),
    "one pixel": jpeg(picture(size=(1, 1))),
}
NOT_PLAIN = {
    "exif": jpeg(picture(), exif=turned()),
    "xmp": jpeg(picture(), xmp=b"<x:xmpmeta/>"),
    "four inks": jpeg(picture("CMYK")),
}


def mpo() -> bytes:
    stream = io.BytesIO()
    picture().save(stream, "MPO", save_all=True, append_images=[picture("RGB", (30, 30))])
    return stream.getvalue()


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_one_has_the_size_that_pillow_finds(kind: str) -> None:
    assert plain_size(PLAIN[kind]) == Image.open(io.BytesIO(PLAIN[kind])).size


@pytest.mark.parametrize(
    "data", [NOT_PLAIN["exif"], NOT_PLAIN["xmp"], NOT_PLAIN["four inks"], mpo(), b"", b"\xff\xd8", b"GIF89a"]
)
def test_what_may_be_turned_or_more_than_one_gets_the_closer_look(data: bytes) -> None:
    assert plain_size(data) is None


def outcome(data: bytes) -> bytes | str:
    """The pixels, or why there are none."""
    try:
        return decode(data, SPEC).tobytes()
    except ImageRejected as error:
        return error.reason


def both(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes | str, bytes | str]:
    quick = outcome(data)
    with monkeypatch.context() as patched:
        patched.setattr(preprocess, "plain_size", lambda _: None)
        return quick, outcome(data)


@pytest.mark.parametrize("kind", PLAIN)
def test_both_ways_give_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, closer = both(PLAIN[kind], monkeypatch)
    assert quick == closer
    assert len(quick) == 48 * 48 * 3


def test_damaged_ones_are_pixels_or_refused_alike_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick look may see less of what is wrong with a header that does not matter; never other pixels, nor a crash."""
    chance, refused = random.Random(3), 0
    for _ in range(1500):
        data = bytearray(PLAIN[chance.choice(sorted(PLAIN))])
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice((0, 1, 1, 3))):
            if data:
                data[chance.randrange(min(len(data), 700))] = chance.randrange(256)
        quick, closer = both(bytes(data), monkeypatch)
        refused += isinstance(closer, str)
        if isinstance(quick, str) or not isinstance(closer, str):
            assert quick == closer
    assert 300 < refused < 1400
