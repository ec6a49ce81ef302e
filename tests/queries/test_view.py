"""Views: the same everywhere, never the picture itself, and about as far from it as a shopper's photo."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks.queries.view import SIDE, make_view
from tests.catalogs import picture

GREY = PreprocessSpec(size=32)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def on_white(seed: int = 0, side: int = 200) -> np.ndarray:
    """A product of coloured blocks in the middle of a white picture."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    blocks = np.random.default_rng(seed).integers(0, 200, (4, 4, 3), dtype=np.uint8)
    pixels[side // 4 : -side // 4, side // 4 : -side // 4] = np.kron(blocks, np.ones((side // 8, side // 8, 1), np.uint8))
    return pixels


def test_a_picture_has_the_same_views_everywhere_and_another_picture_or_number_others(tmp_path: Path) -> None:
    one, other = (picture(tmp_path / f"{n}.jpg", n).read_bytes() for n in (1, 2))
    assert make_view(one) == make_view(one)
    assert len({make_view(one), make_view(one, 1), make_view(other), one}) == 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_view_is_a_small_jpeg_that_shows_something_else_than_the_picture(kind: str) -> None:
    data = encoded(on_white(), kind)
    view = make_view(data)
    assert view is not None
    with Image.open(io.BytesIO(view)) as shown:
        assert (shown.format, max(shown.size)) == ("JPEG", SIDE)
    difference = np.abs(decode(view, GREY).astype(int) - decode(data, GREY).astype(int)).mean()
    assert difference > 10, "grey levels"


def test_a_plain_background_gives_way_to_a_surface_and_a_scene_is_cut() -> None:
    white = decode(make_view(encoded(on_white())) or b"", PreprocessSpec(size=64))
    assert (white.min(axis=2) > 245).mean() < 0.05, "hardly anything is left of the white"
    noise = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    scene = encoded(np.kron(noise, np.ones((12, 12, 1), np.uint8)))
    assert make_view(scene) is not None


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_even_a_picture_of_one_colour_is_never_its_own_view(colour: int) -> None:
    data = encoded(np.full((50, 80, 3), colour, np.uint8))
    view = make_view(data)
    assert view is None or view != data


def test_what_is_no_picture_has_no_view() -> None:
    with pytest.raises(ImageRejected):
        make_view(b"not a picture")
