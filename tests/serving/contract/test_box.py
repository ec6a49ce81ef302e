"""A box lies in a photo as a person sees it, covers at least one pixel, and says what reaches over an edge."""

import pytest
from pydantic import ValidationError

from serving.contract.box import Box


def box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x=x, y=y, width=width, height=height)


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [
        ((0, 0, 1, 1), (0, 10), (0, 20)),
        ((0.25, 0.5, 0.5, 0.5), (5, 10), (5, 15)),
        ((0.999, 0.999, 0.001, 0.001), (9, 10), (19, 20)),
        ((0, 0, 1e-9, 1e-9), (0, 1), (0, 1)),
        ((0.5, 0.5, 0.5 + 1e-7, 0.5 + 1e-7), (5, 10), (10, 20)),
    ],
)
def test_it_covers_these_pixels(values: tuple, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    found = box(*values).slices(10, 20)
    assert [(s.start, s.stop) for s in found] == [rows, columns]


def test_neighbouring_boxes_share_no_pixel_and_leave_none_out() -> None:
    edges = [0, 0.13, 0.4, 0.77]
    parts = [box(a, 0, b - a, 1).slices(7, 33)[1] for a, b in zip(edges, [*edges[1:], 1], strict=True)]
    assert [i for part in parts for i in range(33)[part]] == list(range(33))


@pytest.mark.parametrize(
    ("values", "whole", "outside"),
    [
        ((0, 0, 1, 1), True, ""),
        ((1e-7, 0, 1, 1), True, ""),
        ((0.01, 0, 0.99, 1), False, ""),
        ((0.5, 0, 0.6, 1), False, "the box reaches over the photo's right edge: x + width is 1.1, at most 1 is in the photo"),
        ((0, 0.9, 1, 0.3), False, "the box reaches over the photo's lower edge: y + height is 1.2, at most 1 is in the photo"),
    ],
)
def test_it_says_what_is_outside(values: tuple, whole: bool, outside: str) -> None:
    assert (box(*values).whole, box(*values).outside()) == (whole, outside)


@pytest.mark.parametrize("values", [(-0.1, 0, 1, 1), (0, 1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 1.1), (float("nan"), 0, 1, 1)])
def test_numbers_that_mean_nothing_are_refused(values: tuple) -> None:
    with pytest.raises(ValidationError):
        box(*values)
