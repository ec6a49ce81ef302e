"""Painting the sample's pictures with Pillow: products with patterns and shading, and shoppers' photos of them. Generated test data."""

import io
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tasks.catalog.sample.shapes import KINDS, Part

CANVAS = 320
"""Products are painted larger than they are shown, so that edges are smooth."""
SIDE = 224

COLOURS = {
    "red": (196, 42, 48), "coral": (240, 128, 104), "orange": (228, 122, 36), "mustard": (214, 168, 44), "yellow": (244, 212, 74),
    "olive": (122, 124, 52), "green": (58, 138, 78), "mint": (150, 212, 184), "teal": (24, 128, 132), "sky": (122, 184, 230),
    "blue": (44, 92, 180), "navy": (28, 42, 88), "purple": (112, 66, 150), "lilac": (190, 160, 214), "pink": (236, 150, 178),
    "burgundy": (112, 28, 50), "brown": (118, 78, 50), "beige": (218, 198, 164), "white": (240, 240, 236), "grey": (138, 140, 144),
    "charcoal": (62, 64, 68), "black": (30, 30, 32),
}  # fmt: skip
PATTERNS = ("plain", "striped", "pinstriped", "dotted", "checked", "diagonal", "two-tone", "zigzag")
MARKS = ("disc", "bar", "triangle", "ring", "square", "cross")


@dataclass(frozen=True)
class Look:
    """Everything that decides how a product looks."""

    kind: int
    colour: str
    second: str
    accent: str
    pattern: str
    scale: float
    a: float
    b: float
    mark: str


def paint_product(look: Look) -> Image.Image:
    """The product alone on a transparent ground, CANVAS x CANVAS RGBA."""
    parts = KINDS[look.kind].draw(look.a, look.b)
    inks: dict[str, Image.Image | tuple[int, int, int]] = {
        "body": _pattern(look), "accent": COLOURS[look.accent], "dark": (34, 32, 34), "light": (246, 244, 238), "metal": (176, 180, 186),
    }  # fmt: skip
    picture = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for part in parts:
        ink: Image.Image | tuple[int, ...] = (0, 0, 0, 0) if part.ink == "clear" else inks[part.ink]
        if isinstance(ink, Image.Image):
            mask = Image.new("L", (CANVAS, CANVAS))
            _outline(ImageDraw.Draw(mask), part, 255)
            picture.paste(ink, (0, 0), mask)
        else:
            _outline(draw, part, ink)
    _stamp(picture, look)
    return _shaded(picture)


def studio(product: Image.Image) -> Image.Image:
    """The shop's own picture: the product on a light ground with a soft shadow, SIDE x SIDE RGB."""
    ground = Image.fromarray(np.linspace(252, 232, CANVAS, dtype=np.uint8)[:, None].repeat(CANVAS, 1)).convert("RGB")
    small = product.resize((int(CANVAS * 0.84),) * 2, Image.Resampling.BILINEAR)
    place = ((CANVAS - small.width) // 2, (CANVAS - small.height) // 2)
    shadow = Image.new("L", (CANVAS // 4, CANVAS // 4))
    shadow.paste(small.getchannel("A").resize((small.width // 4, small.height // 4)), (place[0] // 4 + 2, place[1] // 4 + 4))
    shadow = shadow.filter(ImageFilter.GaussianBlur(4)).resize((CANVAS, CANVAS)).point([int(v * 0.35) for v in range(256)])
    ground.paste((96, 92, 88), (0, 0), shadow)
    ground.paste(small, place, small)
    return ground.resize((SIDE, SIDE), Image.Resampling.BOX)


def shopper_photo(product: Image.Image, rng: np.random.Generator) -> bytes:
    """A JPEG as a shopper would take it: other place, angle, distance, light, focus and quality."""
    ground = _place(rng)
    size = int(SIDE * rng.uniform(0.66, 1.05))
    seen = turned(product, size, rng)
    slack = (SIDE - size) // 2
    reach = max(int(SIDE * 0.10), 1)
    place = (slack + int(rng.integers(-reach, reach + 1)), slack + int(rng.integers(-reach, reach + 1)))
    faint = seen.getchannel("A").resize((size // 4, size // 4)).filter(ImageFilter.GaussianBlur(1.3))
    shadow = faint.resize((size, size)).point([int(v * 0.4) for v in range(256)])
    ground.paste((20, 18, 16), (place[0] + 5, place[1] + 7), shadow)
    ground.paste(seen, place, seen)
    pixels = np.asarray(ground, np.float32)
    pixels = _light(pixels, rng)
    photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=int(rng.integers(45, 92)))
    return out.getvalue()


@cache
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel, as float32 that broadcasts: (side, 1) and (1, side)."""
    steps = np.arange(side, dtype=np.float32)
    return steps[:, None], steps[None, :]


def _outline(draw: ImageDraw.ImageDraw, part: Part, ink: int | tuple[int, ...]) -> None:
    points = [(x * CANVAS, y * CANVAS) for x, y in part.points]
    width = max(int(part.width * CANVAS), 1)
    if part.shape == "polygon":
        draw.polygon(points, fill=ink)
    elif part.shape == "ellipse":
        draw.ellipse([*points[0], *points[1]], fill=ink)
    elif part.shape == "arc":
        draw.ellipse([*points[0], *points[1]], outline=ink, width=width)
    else:
        draw.line(points, fill=ink, width=width, joint="curve")


def _pattern(look: Look) -> Image.Image:
    """The body's cloth, CANVAS x CANVAS RGB."""
    y, x = _grid(CANVAS)
    step = CANVAS * look.scale
    if look.pattern == "striped":
        on = (y % (2 * step)) < step
    elif look.pattern == "pinstriped":
        on = (x % step) < step * 0.22
    elif look.pattern == "dotted":
        on = np.hypot(x % step - step / 2, (y + (x // step % 2) * step / 2) % step - step / 2) < step * 0.28
    elif look.pattern == "checked":
        on = ((x // step) + (y // step)) % 2 == 0
    elif look.pattern == "diagonal":
        on = ((x + y) % (2 * step)) < step
    elif look.pattern == "two-tone":
        on = y > CANVAS * (0.38 + look.scale * 2)
    elif look.pattern == "zigzag":
        on = ((y + np.abs(x % step - step / 2)) % step) < step * 0.42
    else:
        on = np.zeros((CANVAS, CANVAS), bool)
    colours = np.array([COLOURS[look.colour], COLOURS[look.second]], np.uint8)
    return Image.fromarray(colours[np.broadcast_to(on, (CANVAS, CANVAS)).astype(np.uint8)])


def _stamp(picture: Image.Image, look: Look) -> None:
    """The brand's small mark in the middle of the product."""
    draw = ImageDraw.Draw(picture)
    x, y, r = CANVAS * 0.5, CANVAS * 0.46, CANVAS * 0.035
    ink = (250, 248, 240, 255) if sum(COLOURS[look.colour]) < 380 else (30, 28, 30, 255)
    corners = [x - r, y - r, x + r, y + r]
    if look.mark == "disc":
        draw.ellipse(corners, fill=ink)
    elif look.mark == "ring":
        draw.ellipse(corners, outline=ink, width=4)
    elif look.mark == "bar":
        draw.rectangle([x - 1.6 * r, y - r / 3, x + 1.6 * r, y + r / 3], fill=ink)
    elif look.mark == "square":
        draw.rectangle(corners, outline=ink, width=4)
    elif look.mark == "cross":
        draw.line([x - r, y, x + r, y], fill=ink, width=6)
        draw.line([x, y - r, x, y + r], fill=ink, width=6)
    else:
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=ink)


def _shaded(picture: Image.Image) -> Image.Image:
    """Light from the upper left, and a darker rim, so that flat shapes look like things."""
    alpha = picture.getchannel("A")
    inside = (
        np.asarray(alpha.resize((CANVAS // 4,) * 2).filter(ImageFilter.GaussianBlur(6)).resize((CANVAS,) * 2), np.float32) / 255
    )
    y, x = (v / CANVAS for v in _grid(CANVAS))
    light = (1.10 - 0.28 * (0.6 * x + 0.4 * y)) * (0.72 + 0.30 * inside.clip(0, 1))
    rgb = np.asarray(picture.convert("RGB"), np.float32) * light[..., None]
    shaded = Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).convert("RGBA")
    shaded.putalpha(alpha)
    return shaded


def _place(rng: np.random.Generator) -> Image.Image:
    """Somewhere to take a photo: a wall, boards, tiles, cloth, or a table in front of a wall."""
    base = np.array([rng.integers(70, 230)] * 3, np.float32) + rng.uniform(-32, 32, 3)
    y, x = _grid(SIDE)
    kind = rng.integers(5)
    tone: np.ndarray = np.ones((SIDE, SIDE), np.float32)
    if kind == 1:
        board = SIDE / rng.uniform(3, 7)
        tone = 0.86 + 0.14 * np.sin(x / board * math.pi) ** 2 + 0.05 * np.sin(y / 9 + (x // board) * 2)
    elif kind == 2:
        tile = SIDE / rng.uniform(3, 6)
        tone = np.where((x % tile < 3) | (y % tile < 3), 0.72, 1.0).astype(np.float32)
    elif kind == 3:
        tone = 0.92 + 0.08 * np.sin(x * rng.uniform(0.4, 1.2)) * np.sin(y * rng.uniform(0.4, 1.2))
    elif kind == 4:
        tone = np.where(y > SIDE * rng.uniform(0.55, 0.85), rng.uniform(0.5, 0.75), 1.0).astype(np.float32)
    grain = rng.normal(0, rng.uniform(1, 6), (SIDE // 2, SIDE // 2)).astype(np.float32).repeat(2, 0).repeat(2, 1)
    pixels = base * np.broadcast_to(tone, (SIDE, SIDE))[..., None] + grain[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def turned(product: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """The product seen at an angle: rotated and in perspective, size x size RGBA."""
    corners = np.array([(0, 0), (size, 0), (size, size), (0, size)], np.float64)
    angle = math.radians(rng.uniform(-22, 22))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    seen = ((corners / size - 0.5) @ turn + 0.5 + rng.uniform(-0.09, 0.09, (4, 2))) * CANVAS
    rows = []
    for (x, y), (u, v) in zip(corners, seen, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients = np.linalg.solve(np.array(rows), seen.ravel())
    return product.transform((size, size), Image.Transform.PERSPECTIVE, coefficients.tolist(), Image.Resampling.BILINEAR)


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, colour temperature, a fall-off to one side, and sensor noise."""
    y, x = (v / SIDE for v in _grid(SIDE))
    angle = rng.uniform(0, 2 * math.pi)
    fall = 1 + rng.uniform(0, 0.35) * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
    warmth = np.array([1 + rng.uniform(-0.10, 0.10), 1.0, 1 + rng.uniform(-0.10, 0.10)], np.float32)
    lit = (pixels - 128) * rng.uniform(0.75, 1.15) + 128
    lit = lit * rng.uniform(0.72, 1.18) * fall[..., None] * warmth
    return lit + rng.normal(0, rng.uniform(0, 5), (SIDE, SIDE, 1)).astype(np.float32)
