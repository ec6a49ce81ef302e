"""The preprocessing contract: what each kind of picture becomes, and what is refused."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from serving.contract import preprocess
from serving.contract.box import Box
from serving.contract.preprocess import ImageLimits, ImageRejected, PreprocessSpec, decode

SPEC = PreprocessSpec(size=64)
TURNS = {
    1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
}  # fmt: skip
"""How an upright picture is stored, by its EXIF orientation."""


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def scene() -> Image.Image:
    """Left half red, right half blue, a green top-left corner: any turn or mirror shows."""
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:, :80], pixels[:, 80:], pixels[:24, :40] = (200, 20, 20), (20, 20, 200), (20, 200, 20)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (12_000, 7), (7, 3000), (64, 64), (50, 90)])
def test_every_size_becomes_the_frame(fit: str, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    for kind in ("PNG", "JPEG"):
        pixels = decode(encoded(picture, kind), PreprocessSpec(size=64, fit=fit))
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        if fit != "pad" or max(size) < 100:  # a strip of one row is thinner than the frame's middle
            assert np.abs(pixels[32, 32].astype(int) - (10, 200, 30)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_jpeg_and_png_alike(scene: Image.Image, orientation: int) -> None:
    stored = scene
    for step in TURNS[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x112] = orientation
    expected = decode(encoded(scene, "PNG"), SPEC).astype(int)
    for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {})):
        found = decode(encoded(stored, kind, exif=exif, **options), SPEC).astype(int)
        assert np.abs(found - expected).mean() < 3


def test_colour_modes_become_rgb(scene: Image.Image) -> None:
    plain = decode(encoded(scene, "PNG"), SPEC).astype(int)
    for kind, picture in (
        ("JPEG", scene.convert("CMYK")), ("PNG", scene.convert("P")), ("GIF", scene), ("WEBP", scene), ("BMP", scene), ("TIFF", scene),
    ):  # fmt: skip
        found = decode(encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {})), SPEC).astype(int)
        assert np.abs(found - plain).mean() < 6, kind
    grey = decode(encoded(scene.convert("L"), "JPEG"), SPEC)
    assert (grey[..., 0] == grey[..., 1]).all()


def test_transparency_lies_on_white_and_16_bit_keeps_its_brightness() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (decode(encoded(clear, "PNG"), SPEC) == 255).all()
    deep = Image.fromarray(np.full((20, 20), 128 << 8, np.uint16))
    assert (decode(encoded(deep, "PNG"), SPEC) == 128).all()


def test_sixteen_bits_of_colour_keep_their_high_bytes() -> None:
    deep = np.zeros((20, 20, 3), np.uint16)
    deep[...] = (200 << 8, 120 << 8, 7 << 8)  # OpenCV writes blue, green, red
    ok, data = cv2.imencode(".png", deep)
    assert ok
    assert (decode(data.tobytes(), SPEC) == (7, 120, 200)).all()


def test_a_palette_with_a_clear_colour_and_grey_with_alpha_lie_on_white() -> None:
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0])
    palette.paste(0, (0, 0, 10, 20))
    found = decode(encoded(palette, "PNG", transparency=0), PreprocessSpec(size=20))
    assert (found[:, :10] == 255).all()
    assert (found[:, 10:] == (250, 0, 0)).all()
    half = Image.new("LA", (20, 20), (0, 128))
    assert np.abs(decode(encoded(half, "PNG"), SPEC).astype(int) - 127).max() <= 1


def test_an_orientation_holds_in_every_format_and_colour_mode(scene: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    stored = scene.transpose(Image.Transpose.ROTATE_90)
    expected = decode(encoded(scene, "PNG"), SPEC).astype(int)
    for kind, picture, options in (
        ("JPEG", stored.convert("CMYK"), {"quality": 100}), ("WEBP", stored, {"lossless": True}), ("TIFF", stored, {}),
        ("JPEG", stored.convert("L"), {"quality": 100}),
    ):  # fmt: skip
        found = decode(encoded(picture, kind, exif=exif, **options), SPEC).astype(int)
        grey = picture.mode == "L"
        wanted = (
            np.asarray(scene.convert("L").resize((64, 64), Image.Resampling.BOX)).astype(int)[..., None] if grey else expected
        )
        assert np.abs(found - wanted).mean() < 6, (kind, picture.mode)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_picture_of_twelve_thousand_columns_is_an_area_average(fit: str) -> None:
    wide = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((12_000, 3_000)).convert("RGB")
    found = decode(encoded(wide, "JPEG", quality=90), PreprocessSpec(size=64, fit=fit)).astype(int)
    row = found[32, :, 0]
    seen = wide.crop((4500, 0, 7500, 3000)) if fit == "crop" else wide
    expected = np.asarray(seen.resize((64, 1), Image.Resampling.BOX))
    assert np.abs(row - expected[0, :, 0]).max() <= 3


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (20, 20), c) for c in ((250, 0, 0), (0, 0, 250))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert decode(data, SPEC)[0, 0, 0] > 240
    for kind in ("WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert (decode(data, SPEC)[0, 0] > (240, -1, -1)).all()
        assert decode(data, SPEC)[0, 0, 2] < 10


def test_a_crop_keeps_the_middle_and_a_pad_keeps_everything() -> None:
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = 255
    data = encoded(Image.fromarray(wide), "PNG")
    assert decode(data, PreprocessSpec(size=30, fit="crop")).mean() > 250
    padded = decode(data, PreprocessSpec(size=30, fit="pad"))
    assert (padded[:10] == 255).all()
    assert (padded[15, :9] == 0).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not_an_image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "not_an_image"),
        (b"x" * 3000, "too_many_bytes"),
    ],
)
def test_bytes_that_are_no_picture_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        decode(data, SPEC, ImageLimits(max_bytes=2000))
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_truncated_picture_is_refused_at_any_length(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(ImageRejected):
            decode(data[: int(len(data) * share)], SPEC)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    for side, words in ((20_000, "far too many pixels; at most 64000000"), (9_000, "is 9000 x 9000; at most 64000000")):
        data = encoded(Image.new("1", (side, side)), "PNG")
        with pytest.raises(ImageRejected, match=words) as caught:
            decode(data, SPEC)
        assert caught.value.reason == "too_many_pixels"


def test_what_is_decoded_whole_has_a_limit_of_its_own(scene: Image.Image) -> None:
    limits = ImageLimits(max_whole_pixels=scene.width * scene.height - 1)
    for kind, picture in (("JPEG", scene), ("JPEG", scene.convert("L")), ("MPO", scene)):
        more = {"save_all": True, "append_images": [scene]} if kind == "MPO" else {}
        assert decode(encoded(picture, kind, **more), SPEC, limits).shape == (64, 64, 3)
    for kind, picture in (("PNG", scene), ("WEBP", scene), ("GIF", scene), ("TIFF", scene), ("JPEG", scene.convert("CMYK"))):
        data = encoded(picture, kind)
        assert decode(data, SPEC).shape == (64, 64, 3)
        with pytest.raises(ImageRejected, match=f"160 x 96; at most 15359 pixels are accepted of a {kind} in ") as caught:
            decode(data, SPEC, limits)
        assert caught.value.reason == "too_many_pixels"


def pixels_of(mode: str) -> Image.Image:
    """A picture of every brightness and, where the mode has it, every transparency, taller than a strip."""
    rng = np.random.default_rng(3)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (600, 20), dtype=np.uint16))
    picture = Image.fromarray(rng.integers(0, 256, (600, 20, 4), dtype=np.uint8))
    return picture.convert("RGB").quantize(40) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK", "1"])
def test_a_picture_becomes_the_same_pixels_in_strips_as_in_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = pixels_of(mode)
    data = encoded(picture, "TIFF" if mode == "CMYK" else "PNG", **({"transparency": 3} if mode == "P" else {}))
    found = decode(data, PreprocessSpec(size=600, fit="pad"))
    monkeypatch.setattr("serving.contract.preprocess.STRIP", 10_000)
    assert np.array_equal(found, decode(data, PreprocessSpec(size=600, fit="pad")))


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", {}), ("PNG", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True}), ("MPO", {})]
)
def test_frames_are_counted_before_any_is_decoded(kind: str, options: dict) -> None:
    pictures = [Image.new("RGB", (20, 20), (250, 40 * n, 0)) for n in range(5)]
    data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
    assert (decode(data, SPEC, ImageLimits(max_frames=5))[0, 0] > (240, -1, -1)).all()
    with pytest.raises(ImageRejected, match="too many frames; at most 4 are accepted") as caught:
        decode(data, SPEC, ImageLimits(max_frames=4))
    assert caught.value.reason == "too_many_frames"


def test_files_made_to_be_counted_for_long_are_refused() -> None:
    """A million frames of ten bytes, and a page whose next page is itself."""
    gif, tiff = encoded(Image.new("P", (20, 20)), "GIF"), encoded(Image.new("RGB", (20, 20)), "TIFF")
    first = int.from_bytes(tiff[4:8], "little")
    last = first + 2 + 12 * int.from_bytes(tiff[first : first + 2], "little")
    for data in (gif[:-1] + (b"," + bytes(11)) * 1_000_000, tiff[:last] + tiff[4:8] + tiff[last + 4 :]):
        with pytest.raises(ImageRejected, match="too many frames"):
            decode(data, SPEC)


def test_other_formats_are_refused_by_name() -> None:
    with pytest.raises(ImageRejected, match="PPM") as caught:
        decode(encoded(Image.new("RGB", (4, 4)), "PPM"), SPEC)
    assert caught.value.reason == "format"


BOX = Box(x=0.25, y=0.125, width=0.5, height=0.75)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_lies_in_the_photo_as_a_person_sees_it(scene: Image.Image, orientation: int, fit: str) -> None:
    spec = PreprocessSpec(size=48, fit=fit)
    stored = scene
    for step in TURNS[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x112] = orientation
    rows, columns = BOX.slices(scene.height, scene.width)
    cut = scene.crop((columns.start, rows.start, columns.stop, rows.stop))
    expected = decode(encoded(cut, "PNG"), spec).astype(int)
    for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})):
        found = decode(encoded(stored, kind, exif=exif, **options), spec, box=BOX).astype(int)
        assert np.abs(found - expected).mean() < 4, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_box_of_the_whole_photo_is_no_box_to_the_last_bit(scene: Image.Image, kind: str) -> None:
    data = encoded(scene.resize((1000, 700)), kind)
    whole = Box(x=0, y=1e-9, width=1 - 1e-9, height=1)
    assert (decode(data, SPEC, box=whole) == decode(data, SPEC)).all()


@pytest.mark.parametrize(
    ("width", "most", "eighths"),
    [
        (1.0, 64_000_000, 1),
        (0.5, 64_000_000, 1),
        (0.1, 64_000_000, 4),
        (0.04, 64_000_000, 8),
        (0.001, 64_000_000, 8),
        (0.04, 700_000, 3),
    ],
)
def test_a_box_in_a_large_jpeg_is_decoded_at_the_scale_it_needs(
    monkeypatch: pytest.MonkeyPatch, width: float, most: int, eighths: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (200, 250, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).resize((2000, 1600), Image.Resampling.BICUBIC), "JPEG", quality=95)
    shapes: list[tuple[int, ...]] = []
    whole = preprocess.decode_jpeg

    def noted(data: bytes, least: tuple[int, int]) -> np.ndarray:
        pixels = whole(data, least)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(preprocess, "decode_jpeg", noted)
    cut = Box(x=0.3, y=0.3, width=min(width, 0.7), height=min(width, 0.7))
    found = decode(data, PreprocessSpec(size=64), ImageLimits(max_whole_pixels=most), cut).astype(int)
    assert shapes == [(1600 * eighths // 8, 2000 * eighths // 8, 3)]
    full = np.asarray(Image.open(io.BytesIO(data)))[cut.slices(1600, 2000)]
    shrinks = min(full.shape[:2]) >= 64
    expected = cv2.resize(full, (64, 64), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR).astype(int)
    assert np.abs(found - expected).mean() < (6 if most > 10**6 else 14)
