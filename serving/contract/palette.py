"""What colours a picture shows: shares of thirteen colour names, from the pixels an encoder takes. Small enough to be a feature.

The same function describes a product when it is embedded and a shopper's photo when it is asked, so that the two may be compared.
A uniform ground (the border of most product pictures) does not count, and the middle of a picture counts more than its edge.
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
"""A border whose colours lie this close together (Lab units) is ground, and so is what looks like it."""


def palette(pixels: np.ndarray) -> np.ndarray:
    """Shares (13,) uint8 of COLOURS in pixels (h, w, 3) uint8 RGB; they sum to about 255."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = _lab(small).reshape(-1, 3)
    weights = _MIDDLE * _figure(lab)
    shares = weights @ _soft(lab)
    return np.rint(255 * shares / shares.sum()).astype(np.uint8)


def alike(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """How alike a palette (13,) and others (n, 13) are, in [0, 1]: their Bhattacharyya coefficient. A palette of zeros: 0."""
    p, q = one.astype(np.float32), many.astype(np.float32)
    sums = p.sum() * q.sum(axis=1)
    return np.sqrt(q) @ np.sqrt(p) / np.sqrt(np.where(sums > 0, sums, 1))


def _lab(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _soft(lab: np.ndarray) -> np.ndarray:
    """Each colour's (n, 3) share of each name: (n, 13), rows sum to one."""
    closer = 2 * lab @ _ANCHORS.T - (_ANCHORS**2).sum(axis=1)  # the colour's own square is the same for every name
    near = np.exp((closer - closer.max(axis=1, keepdims=True)) / (2 * NEAR**2))
    return near / near.sum(axis=1, keepdims=True)


def _figure(lab: np.ndarray) -> np.ndarray:
    """1 for what belongs to the thing shown, 0 for a uniform ground; all ones where the ground is not uniform or is all there is."""
    border = lab[_BORDER]
    ground = np.median(border, axis=0)
    if np.linalg.norm(border - ground, axis=1).mean() > GROUND:
        return np.ones(len(lab), np.float32)
    figure = (np.linalg.norm(lab - ground, axis=1) > GROUND).astype(np.float32)
    return figure if figure.mean() > 0.02 else np.ones(len(lab), np.float32)


_ANCHORS = _lab(np.array([list(COLOURS.values())], np.uint8))[0]
_ACROSS = np.linspace(-1, 1, SIDE, dtype=np.float32) ** 2
_MIDDLE = np.exp(-(_ACROSS[:, None] + _ACROSS[None]) / (2 * 0.6**2)).ravel()
_BORDER = np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True).ravel()
