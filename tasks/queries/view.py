"""A view: a product picture changed to what a shopper's photo of it could be. Background, crop, light, blur and JPEG, no torch.

Every range below was set once, by looking at the pictures and at how far the recall on views lies from that on shoppers' photos
(docs/decisions/0088); another range is another VERSION, so that views of two kinds are never mixed.
"""

import hashlib

import cv2
import numpy as np

from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode

VERSION = 1
SIDE = 320
"""Pixels of a view's longer side at most: what encoders take, and 15 KB as JPEG."""
PLAIN = 0.7
"""With so much of its edge in one colour, a picture has a plain background, which is replaced."""
TOLERANCE = 18
"""Grey levels that a plain background may stray from its colour."""


def make_view(data: bytes, number: int = 0) -> bytes | None:
    """View `number` of the picture `data`, a JPEG; None where it would equal the picture. Raises ImageRejected like `decode`.

    All chance comes from the picture's bytes and the number, so the same picture has the same views everywhere.
    """
    pixels = decode(data, PreprocessSpec(size=SIDE, fit="pad"))
    seed = hashlib.sha256(b"view %d %d " % (VERSION, number) + data).digest()
    rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
    view = _photographed(_on_ground(pixels, rng), rng)
    if np.array_equal(view, cv2.resize(pixels, view.shape[1::-1], interpolation=cv2.INTER_AREA)):
        return None
    done, encoded = cv2.imencode(".jpg", view[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 86))])
    if not done:
        raise ImageRejected("undecodable", "no view of the picture could be encoded")
    made = encoded.tobytes()
    return made if made != data else None


def _on_ground(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture (s, s, 3) turned, moved, scaled and cut by the frame; a plain background gives way to a surface."""
    height, width = SIDE, int(SIDE * rng.uniform(0.75, 1.0))
    centre = (SIDE / 2, SIDE / 2)
    plain = _plain_background(pixels)
    scale = rng.uniform(0.6, 1.15) if plain is not None else rng.uniform(1.05, 1.5)
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, rng.uniform(-20, 20), scale * width / SIDE), np.float64)
    matrix[0, 2] += width / 2 - centre[0] + width * rng.uniform(-0.12, 0.12)
    matrix[1, 2] += height / 2 - centre[1] + height * rng.uniform(-0.12, 0.12)
    mode = cv2.BORDER_REFLECT_101 if plain is None else cv2.BORDER_REPLICATE
    moved = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=mode)
    if plain is None:
        return moved.astype(np.float32)
    ground = _surface(height, width, rng)
    cover = cv2.warpAffine((~plain).astype(np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR)
    cover = cv2.GaussianBlur(cover, (0, 0), 0.8)[:, :, None]
    return moved * cover + ground * (1 - cover)


def _plain_background(pixels: np.ndarray) -> np.ndarray | None:
    """The background (h, w) bool of a picture whose edge has one colour; None for one without such an edge, or all background."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)
    colour = np.median(edge, axis=0)
    if (np.abs(edge - colour).max(axis=1) <= TOLERANCE).mean() < PLAIN:
        return None
    alike = (np.abs(pixels.astype(np.int16) - colour).max(axis=2) <= TOLERANCE).astype(np.uint8)
    _, parts = cv2.connectedComponents(alike, connectivity=4)
    outside = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    background = np.isin(parts, outside[outside > 0])
    return None if background.mean() > 0.98 else background


def _surface(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A soft, uneven surface (h, w, 3) float32: a dull colour with blotches of two sizes."""
    ground = np.full((height, width, 3), rng.uniform(40, 215) + rng.uniform(-30, 30, 3), np.float32)
    for cells, grey, tint in ((3, 30.0, 12.0), (24, 12.0, 4.0)):
        blotches = rng.normal(0, grey, (cells, cells, 1)) + rng.normal(0, tint, (cells, cells, 3))
        ground += cv2.resize(blotches.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return ground


def _photographed(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scene (h, w, 3) float32 under uneven, tinted light, out of focus, with a sensor's noise; uint8."""
    height, width, _ = scene.shape
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    light = 1 + slope * (np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None])
    tint = rng.uniform(0.9, 1.1, 3) * rng.uniform(0.65, 1.2)
    lit = np.clip(scene * (light[:, :, None] * tint).astype(np.float32), 0, 255) / 255
    lit = 255 * lit ** rng.uniform(0.8, 1.3)
    blurred = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.4, 2.2))
    noisy = blurred + rng.normal(0, rng.uniform(1, 7), blurred.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)
