"""How the sample's products look: each kind as a silhouette with parts, in unit coordinates (0,0 top left, 1,1 bottom right).

Generated test data. `a` and `b` in [0, 1] are a product's own proportions.
"""

from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A polygon, ellipse (two corners) or line; `ink` is body (patterned), accent, dark, light or metal."""

    shape: str
    points: tuple[Point, ...]
    ink: str = "body"
    width: float = 0.0


def _mirror(points: list[Point]) -> tuple[Point, ...]:
    """A left outline from top to bottom, closed with its mirror image."""
    return tuple(points + [(1 - x, y) for x, y in reversed(points)])


def poly(*points: Point, ink: str = "body") -> Part:
    return Part("polygon", points, ink)


def oval(x0: float, y0: float, x1: float, y1: float, ink: str = "body") -> Part:
    return Part("ellipse", ((x0, y0), (x1, y1)), ink)


def line(*points: Point, ink: str = "dark", width: float = 0.012) -> Part:
    return Part("line", points, ink, width)


def box(x0: float, y0: float, x1: float, y1: float, ink: str = "body") -> Part:
    return poly((x0, y0), (x1, y0), (x1, y1), (x0, y1), ink=ink)


def tshirt(a: float, b: float) -> list[Part]:
    sleeve, hem = 0.30 + 0.22 * a, 0.80 + 0.12 * b
    body = _mirror([(0.40, 0.14), (0.27, 0.19), (0.05, sleeve), (0.15, sleeve + 0.10), (0.27, 0.36), (0.26, hem)])
    return [
        Part("polygon", body),
        oval(0.39, 0.08, 0.61, 0.21, "light"),
        line((0.27, hem - 0.03), (0.73, hem - 0.03), width=0.006),
    ]


def hoodie(a: float, b: float) -> list[Part]:
    hem = 0.82 + 0.08 * b
    body = _mirror([(0.36, 0.18), (0.24, 0.24), (0.07, 0.74), (0.17, 0.79), (0.27, 0.46), (0.26, hem)])
    pocket = poly((0.37, 0.62), (0.63, 0.62), (0.68, 0.76), (0.32, 0.76), ink="accent")
    hood = [oval(0.32, 0.06 - 0.02 * a, 0.68, 0.30), oval(0.39, 0.10, 0.61, 0.27, "dark")]
    return [
        Part("polygon", body),
        *hood,
        pocket,
        line((0.45, 0.26), (0.44, 0.40), ink="light"),
        line((0.55, 0.26), (0.56, 0.40), ink="light"),
    ]


def dress(a: float, b: float) -> list[Part]:
    waist, hem, flare = 0.36 + 0.08 * b, 0.78 + 0.16 * a, 0.10 + 0.16 * b
    body = _mirror([(0.41, 0.06), (0.34, 0.10), (0.35, 0.24), (0.38, waist), (flare, hem), (flare + 0.1, hem + 0.03)])
    return [Part("polygon", body), oval(0.40, 0.00, 0.60, 0.14, "light"), box(0.375, waist - 0.02, 0.625, waist + 0.03, "accent")]


def trousers(a: float, b: float) -> list[Part]:
    leg, length = 0.10 + 0.10 * a, 0.62 + 0.33 * b
    legs = (
        (0.30, 0.06),
        (0.70, 0.06),
        (0.76, length),
        (0.76 - leg - 0.04, length),
        (0.50, 0.34),
        (0.24 + leg + 0.04, length),
        (0.24, length),
    )
    return [
        poly(*legs),
        box(0.30, 0.06, 0.70, 0.11, "accent"),
        line((0.5, 0.11), (0.5, 0.32)),
        line((0.34, 0.12), (0.30, 0.24)),
        line((0.66, 0.12), (0.70, 0.24)),
    ]


def skirt(a: float, b: float) -> list[Part]:
    hem, flare = 0.58 + 0.32 * a, 0.06 + 0.18 * b
    pleats = [
        line((0.34 + 0.08 * n, 0.22), (flare + 0.06 + (0.88 - 2 * flare) * n / 4, hem - 0.02), width=0.006) for n in range(5)
    ]
    return [poly((0.32, 0.14), (0.68, 0.14), (1 - flare, hem), (flare, hem)), *pleats, box(0.32, 0.14, 0.68, 0.20, "accent")]


def sneaker(a: float, b: float) -> list[Part]:
    collar, sole = 0.36 - 0.14 * a, 0.05 + 0.06 * b
    upper = poly(
        (0.08, collar + 0.02), (0.32, collar), (0.44, 0.48), (0.66, 0.56), (0.88, 0.60), (0.95, 0.70), (0.95, 0.74), (0.07, 0.74)
    )
    laces = [
        line((0.40 + 0.06 * n, 0.44 + 0.035 * n), (0.47 + 0.06 * n, 0.53 + 0.02 * n), ink="light", width=0.016) for n in range(4)
    ]
    stripe = [
        poly((0.22 + 0.1 * n, 0.72), (0.26 + 0.1 * n, 0.72), (0.34 + 0.1 * n, 0.56), (0.30 + 0.1 * n, 0.56), ink="accent")
        for n in range(2)
    ]
    return [upper, *stripe, *laces, poly((0.05, 0.73), (0.96, 0.73), (0.97, 0.73 + sole), (0.06, 0.73 + sole), ink="light")]


def boot(a: float, b: float) -> list[Part]:
    top, heel = 0.08 + 0.26 * a, 0.04 + 0.10 * b
    upper = poly((0.24, top), (0.56, top), (0.57, 0.54), (0.78, 0.62), (0.90, 0.72), (0.90, 0.80), (0.24, 0.80))
    laces = [line((0.46, top + 0.10 + 0.08 * n), (0.57, top + 0.12 + 0.08 * n), ink="light", width=0.014) for n in range(4)]
    return [
        upper,
        box(0.24, top, 0.56, top + 0.05, "accent"),
        *laces,
        box(0.22, 0.79, 0.92, 0.84, "dark"),
        box(0.22, 0.83, 0.42, 0.84 + heel, "dark"),
    ]


def handbag(a: float, b: float) -> list[Part]:
    top, slope = 0.38 + 0.08 * a, 0.04 + 0.10 * b
    handle = Part("arc", ((0.30, 0.10 + 0.10 * a), (0.70, 0.74)), "accent", 0.035)
    flap = poly(
        (0.14 + slope, top),
        (0.86 - slope, top),
        (0.84 - slope, top + 0.22),
        (0.5, top + 0.30),
        (0.16 + slope, top + 0.22),
        ink="accent",
    )
    return [
        handle,
        poly((0.14 + slope, top), (0.86 - slope, top), (0.90, 0.90), (0.10, 0.90)),
        flap,
        oval(0.46, top + 0.22, 0.54, top + 0.30, "metal"),
    ]


def backpack(a: float, b: float) -> list[Part]:
    side = 0.16 + 0.08 * b
    loop = Part("arc", ((0.42, 0.02), (0.58, 0.20)), "dark", 0.03)
    body = [oval(side, 0.10, 1 - side, 0.62), box(side, 0.34, 1 - side, 0.92)]
    pocket = box(side + 0.08, 0.58 + 0.06 * a, 0.92 - side, 0.86, "accent")
    return [
        loop,
        *body,
        pocket,
        line((side + 0.08, 0.64 + 0.06 * a), (0.92 - side, 0.64 + 0.06 * a)),
        line((side + 0.06, 0.36), (0.94 - side, 0.36), ink="light"),
    ]


def cap(a: float, b: float) -> list[Part]:
    peak = 0.30 + 0.14 * b
    return [
        oval(0.14, 0.24 + 0.08 * a, 0.72, 0.96),
        box(0.0, 0.62, 1.0, 1.0, "clear"),
        poly((0.44, 0.56), (0.70, 0.54), (0.66 + peak, 0.62), (0.66 + peak, 0.67), (0.40, 0.64), ink="accent"),
        oval(0.40, 0.22 + 0.08 * a, 0.46, 0.27 + 0.08 * a, "accent"),
    ]


def mug(a: float, b: float) -> list[Part]:
    top, taper = 0.20 + 0.14 * a, 0.08 * b
    handle = Part("arc", ((0.58, top + 0.10), (0.92, 0.76)), "accent", 0.055)
    return [
        handle,
        poly((0.16, top), (0.72, top), (0.72 - taper, 0.86), (0.16 + taper, 0.86)),
        oval(0.16, top - 0.05, 0.72, top + 0.05, "dark"),
        oval(0.16 + taper, 0.82, 0.72 - taper, 0.90),
    ]


def bottle(a: float, b: float) -> list[Part]:
    shoulder, half = 0.30 + 0.12 * a, 0.12 + 0.10 * b
    body = _mirror([(0.44, 0.12), (0.44, 0.22), (0.5 - half, shoulder), (0.5 - half, 0.92)])
    return [
        Part("polygon", body),
        box(0.42, 0.04, 0.58, 0.13, "accent"),
        box(0.5 - half, 0.52, 0.5 + half, 0.74, "light"),
        line((0.5 - half, 0.50), (0.5 + half, 0.50), ink="accent", width=0.02),
    ]


def vase(a: float, b: float) -> list[Part]:
    belly, neck = 0.10 + 0.16 * a, 0.38 + 0.06 * b
    body = _mirror([(0.34, 0.10), (neck, 0.24), (belly + 0.06, 0.48), (belly, 0.62), (belly + 0.1, 0.80), (0.36, 0.92)])
    return [
        Part("polygon", body),
        oval(0.34, 0.06, 0.66, 0.14, "dark"),
        line((belly + 0.02, 0.62), (0.98 - belly, 0.62), ink="accent", width=0.03),
    ]


def chair(a: float, b: float) -> list[Part]:
    top, seat = 0.06 + 0.14 * a, 0.52 + 0.06 * b
    legs = [
        poly((x, seat), (x + 0.045, seat), (x + d + 0.04, 0.95), (x + d, 0.95), ink="accent")
        for x, d in ((0.24, -0.05), (0.72, 0.05), (0.36, 0.0), (0.60, 0.0))
    ]
    return [
        *legs,
        poly((0.27, top), (0.73, top), (0.70, seat), (0.30, seat)),
        poly((0.22, seat), (0.78, seat), (0.84, seat + 0.09), (0.16, seat + 0.09)),
    ]


def sofa(a: float, b: float) -> list[Part]:
    back, arm = 0.28 + 0.10 * a, 0.09 + 0.06 * b
    feet = [box(x, 0.78, x + 0.05, 0.86, "accent") for x in (0.10, 0.85)]
    cushions = [
        box(0.04 + arm + n * (0.92 - 2 * arm) / 2, 0.50, 0.04 + arm + (n + 1) * (0.92 - 2 * arm) / 2 - 0.01, 0.64, "light")
        for n in range(2)
    ]
    return [
        *feet,
        box(0.10, back, 0.90, 0.62),
        *cushions,
        box(0.04, 0.62, 0.96, 0.79),
        box(0.02, 0.44, 0.02 + arm, 0.80),
        box(0.98 - arm, 0.44, 0.98, 0.80),
    ]


def lamp(a: float, b: float) -> list[Part]:
    wide, shade = 0.16 + 0.12 * b, 0.34 + 0.14 * a
    return [
        box(0.48, shade, 0.52, 0.88, "metal"),
        oval(0.32, 0.84, 0.68, 0.94, "accent"),
        poly((0.5 - wide * 0.6, 0.06), (0.5 + wide * 0.6, 0.06), (0.5 + wide * 1.5, shade), (0.5 - wide * 1.5, shade)),
    ]


def watch(a: float, b: float) -> list[Part]:
    half = 0.17 + 0.06 * a
    strap = box(0.40 - 0.04 * b, 0.02, 0.60 + 0.04 * b, 0.98)
    hands = [
        line((0.5, 0.5), (0.5, 0.5 - half * 0.7), width=0.016),
        line((0.5, 0.5), (0.5 + half * 0.55, 0.5 + 0.04), width=0.016),
    ]
    return [
        strap,
        oval(0.5 - half - 0.05, 0.45 - half, 0.55 + half, 0.55 + half, "metal"),
        oval(0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half, "accent"),
        oval(0.5 - half * 0.85, 0.5 - half * 0.85, 0.5 + half * 0.85, 0.5 + half * 0.85, "light"),
        *hands,
    ]


def umbrella(a: float, b: float) -> list[Part]:
    rim = 0.46 + 0.08 * a
    panels = [line((0.5, 0.08), (x, rim), width=0.008) for x in (0.22, 0.40, 0.60, 0.78)]
    return [
        box(0.487, 0.10, 0.513, 0.88, "metal"),
        Part("arc", ((0.38, 0.78), (0.513, 0.94)), "accent", 0.03),
        oval(0.04, 0.08, 0.96, 2 * rim - 0.08),
        box(0.0, rim, 0.485, 1.0, "clear"),
        box(0.515, rim, 1.0, 1.0, "clear"),
        *panels,
    ]


@dataclass(frozen=True)
class Kind:
    """A kind of product: its names, where it stands in the shop, its usual price, and how it is drawn."""

    name: str
    category: tuple[str, ...]
    price: float
    draw: Callable[[float, float], list[Part]]


KINDS = (
    Kind("T-shirt", ("Clothing", "Tops", "T-shirts"), 19, tshirt), Kind("Hoodie", ("Clothing", "Tops", "Hoodies"), 49, hoodie),
    Kind("Dress", ("Clothing", "Dresses"), 59, dress), Kind("Trousers", ("Clothing", "Trousers"), 55, trousers),
    Kind("Skirt", ("Clothing", "Skirts"), 39, skirt), Kind("Sneaker", ("Shoes", "Sneakers"), 79, sneaker),
    Kind("Boot", ("Shoes", "Boots"), 119, boot), Kind("Handbag", ("Bags", "Handbags"), 89, handbag),
    Kind("Backpack", ("Bags", "Backpacks"), 65, backpack), Kind("Cap", ("Accessories", "Caps"), 22, cap),
    Kind("Watch", ("Accessories", "Watches"), 149, watch), Kind("Umbrella", ("Accessories", "Umbrellas"), 25, umbrella),
    Kind("Mug", ("Home", "Kitchen", "Mugs"), 12, mug), Kind("Bottle", ("Home", "Kitchen", "Bottles"), 18, bottle),
    Kind("Vase", ("Home", "Decoration", "Vases"), 34, vase), Kind("Lamp", ("Home", "Lighting", "Lamps"), 69, lamp),
    Kind("Chair", ("Furniture", "Chairs"), 129, chair), Kind("Sofa", ("Furniture", "Sofas"), 699, sofa),
)  # fmt: skip
