"""Colour palettes: shares of thirteen colour names in the pixels an encoder takes, 13 bytes, stored as a feature.

The same function describes products when they are embedded and photos at query time, so that the two are comparable. A uniform
background (the border of most product pictures) does not count, and the middle of a picture counts more than its edge.
"""

import cv2
import numpy as np
import pyarrow as pa

COLOURS = {
    "black": (20, 20, 20), "white": (248, 248, 248), "grey": (135, 135, 135), "red": (200, 30, 35), "orange": (240, 130, 30),
    "yellow": (245, 215, 50), "green": (50, 140, 60), "teal": (40, 160, 160), "blue": (40, 80, 180), "purple": (120, 60, 150),
    "pink": (235, 130, 170), "brown": (110, 70, 40), "beige": (220, 200, 165),
}  # fmt: skip
"""sRGB of what people call by these names: the eleven basic colour terms of Berlin and Kay, with teal and beige."""
NAMES = tuple(COLOURS)
PALETTE = "palette"
"""The column of palettes, in the embedding store and among a version's features; a version without it has no colour term."""
PALETTE_TYPE = pa.binary(len(NAMES))
SIDE = 16
NEAR = 18.0
"""Width (Lab units) of the soft assignment: a colour between two names counts for both."""
GROUND = 12.0
"""A border whose colours lie this close together (Lab units) is background, and so are pixels this close to it."""


def palette(pixels: np.ndarray) -> np.ndarray:
    """Shares (13,) uint8 of COLOURS in pixels (h, w, 3) uint8 RGB; they sum to about 255."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = _lab(small).reshape(-1, 3).T.copy()  # channel by channel: what runs along a row of numbers is quick
    near = np.exp(_TWICE @ lab - _SQUARES)
    shares = near @ (_MIDDLE * _figure(lab) / (_ONES @ near))
    return np.rint(shares * (255 / shares.sum())).astype(np.uint8)


def colour_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Bhattacharyya coefficient in [0, 1] of a palette (..., 13) and others (..., n, 13); 0 for a palette of zeros."""
    p, q = one.astype(np.float32), many.astype(np.float32)
    ones = np.ones((len(NAMES), 1), np.float32)
    sums = p.sum(axis=-1, keepdims=True) * (q @ ones)[..., 0]  # a product; summing along short rows takes ten times as long
    return (np.sqrt(q) @ np.sqrt(p)[..., None])[..., 0] / np.sqrt(np.maximum(sums, 1))


def _lab(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.divide(pixels, 255, dtype=np.float32), cv2.COLOR_RGB2LAB)


def _figure(lab: np.ndarray) -> np.ndarray | int:
    """Foreground mask (pixels,): 0 for a uniform background; the number 1 where it is not uniform, or covers everything."""
    border = lab.take(_BORDER, axis=1)
    half = border.shape[1] // 2
    middle = np.partition(border, (half - 1, half), axis=1)
    ground = (middle[:, half - 1] + middle[:, half]) / 2  # the median; np.median takes three times as long
    away = lab - ground[:, None]
    squared = _ONES[:3] @ (away * away)
    if np.sqrt(squared.take(_BORDER)).sum() > GROUND * len(_BORDER):
        return 1
    apart = squared > GROUND**2
    return apart if np.count_nonzero(apart) > 0.02 * len(apart) else 1


_ANCHORS = _lab(np.array([list(COLOURS.values())], np.uint8))[0]
_TWICE = _ANCHORS / np.float32(NEAR**2)
_SQUARES = (_ANCHORS**2).sum(axis=1, keepdims=True) / np.float32(2 * NEAR**2)
"""exp(_TWICE @ lab - _SQUARES) is, but for a factor that a colour's names share, exp(-distance**2 / (2 * NEAR**2)); in sRGB the sum
over the names lies between 0.9 and 2e12."""
_ONES = np.ones(len(NAMES), np.float32)
_ACROSS = np.linspace(-1, 1, SIDE, dtype=np.float32) ** 2
_MIDDLE = np.exp(-(_ACROSS[:, None] + _ACROSS[None]) / (2 * 0.6**2)).ravel()
_BORDER = np.flatnonzero(np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True))
