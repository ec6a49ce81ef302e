"""A catalogue to try things on: products drawn by code, with shoppers' photos of each. Generated test data, the same for a seed."""

import csv
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from serving.contract.files import atomic_write
from tasks.catalog.sample.drawing import CANVAS, COLOURS, MARKS, PATTERNS, Look, paint_product, shopper_photo, studio, turned
from tasks.catalog.sample.shapes import KINDS
from tasks.progress import Progress

BRANDS = (
    "Norda", "Kestrel", "Maremma", "Tidewater", "Alba", "Fjell", "Quill", "Ostara", "Linden", "Brava", "Sorrel", "Juniper",
)  # fmt: skip
NOTICE = "sample data: products and photos drawn by code"
VIEWS = 10_000
"""Draws of a product's further pictures begin with this number, those of its photos with their own."""
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SampleConfig:
    """How much to generate. A product's last photo is held out: `val` for every third product, `test` for every ninth.

    A product has 1 to `most_pictures` pictures, evenly drawn: the studio's, then others from the side or in use, in images.csv.
    """

    products: int = 2000
    photos_per_product: int = 3
    seed: int = 7
    most_pictures: int = 1

    @property
    def record(self) -> dict[str, int]:
        """What a complete sample says of itself, as it did before there were several pictures."""
        return {name: value for name, value in asdict(self).items() if name != "most_pictures" or value > 1}


@dataclass(frozen=True)
class SampleRef:
    """A generated catalogue folder."""

    folder: str
    products: int
    photos: int


def draw_sample(config: SampleConfig, folder: Path) -> SampleRef:
    """Generates the catalogue into `folder` (products.csv, photos.csv, images/, photos/, and images.csv where products have several
    pictures); a complete one is kept."""
    done = folder / "sample.json"
    if done.is_file():
        record = json.loads(done.read_text())
        if record["config"] == config.record:
            return SampleRef(str(folder), record["products"], record["photos"])
        done.unlink()
    for name in ("images", "photos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = range(config.products)
    looks = list(_looks(config))
    with (
        Progress("draw the sample catalogue", config.products, "products") as progress,
        ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool,
    ):
        draw = partial(_draw, config=config, folder=folder)
        for _ in pool.map(draw, numbers, looks, chunksize=20):
            progress.add()
    photos = _write_tables(config, folder, looks)
    with atomic_write(done) as path:
        path.write_text(json.dumps({"config": config.record, "products": config.products, "photos": photos, "notice": NOTICE}))
    return SampleRef(str(folder), config.products, photos)


def _looks(config: SampleConfig) -> Iterator[Look]:
    """A look per product; no two products of a kind share colours, pattern and nearly the same proportions."""
    rng = np.random.default_rng(config.seed)
    names = list(COLOURS)
    seen: set[tuple] = set()
    for number in range(config.products):
        kind = number % len(KINDS)
        while True:
            colour, second, accent = (names[i] for i in rng.choice(len(names), 3, replace=False))
            pattern = PATTERNS[rng.integers(len(PATTERNS))]
            a, b = (round(float(v), 2) for v in rng.random(2))
            identity = (kind, colour, second if pattern != "plain" else "", accent, pattern, round(a * 2), round(b * 2))
            if identity not in seen or len(seen) > 100_000:
                seen.add(identity)
                break
        scale = float(rng.choice([0.035, 0.055, 0.085]))
        yield Look(kind, colour, second, accent, pattern, scale, a, b, MARKS[_brand(number) % len(MARKS)])


def _brand(number: int) -> int:
    return (number * 7 + number // 18) % len(BRANDS)


def _draw(number: int, look: Look, config: SampleConfig, folder: Path) -> None:
    """One product's picture and its photos; the photos depend on the seed and the product alone."""
    product = paint_product(look)
    studio(product).save(folder / _image(number), quality=90)
    for n in range(config.photos_per_product):
        rng = np.random.default_rng([config.seed, number, n])
        (folder / _photo(number, n)).write_bytes(shopper_photo(product, rng))
    for n in range(1, pictures_of(number, config)):
        rng = np.random.default_rng([config.seed, number, VIEWS, n])
        if n % 3 == 0:
            (folder / _image(number, n)).write_bytes(shopper_photo(product, rng))
        else:
            studio(turned(product, CANVAS, rng)).save(folder / _image(number, n), quality=90)


def pictures_of(number: int, config: SampleConfig) -> int:
    """How many pictures a product has."""
    return int(np.random.default_rng([config.seed, number, VIEWS]).integers(1, config.most_pictures + 1))


def _image(number: int, view: int = 0) -> str:
    return f"images/p{number:05d}{f'-{view}' if view else ''}.jpg"


def _photo(number: int, n: int) -> str:
    return f"photos/p{number:05d}-{n}.jpg"


def _write_tables(config: SampleConfig, folder: Path, looks: list[Look]) -> int:
    rng = np.random.default_rng(config.seed + 1)
    fields = [
        "product_id", "title", "description", "brand", "category", "price", "currency", "in_stock", "popularity", "priority",
        "image", "updated_at", "colour", "pattern",
    ]  # fmt: skip
    with atomic_write(folder / "products.csv") as path, path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, fields)
        table.writeheader()
        for number, look in enumerate(looks):
            kind, brand = KINDS[look.kind], BRANDS[_brand(number)]
            worn = look.pattern if look.pattern == "plain" else f"{look.pattern} {look.colour} and {look.second}"
            title = (
                f"{brand} {look.colour} {kind.name.lower()}" if look.pattern == "plain" else f"{brand} {worn} {kind.name.lower()}"
            )
            table.writerow({
                "product_id": f"p{number:05d}", "title": title, "brand": brand, "category": " > ".join(kind.category),
                "description": f"{title[0].upper()}{title[1:]} with {look.accent} details.",
                "price": round(kind.price * float(rng.lognormal(0, 0.25)), 2), "currency": "EUR",
                "in_stock": int(rng.random() < 0.93), "popularity": round(float(rng.pareto(3)), 4),
                "priority": int(rng.random() < 0.05), "image": _image(number),
                "updated_at": (FIRST_DAY + timedelta(minutes=int(rng.integers(400_000)))).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "colour": look.colour, "pattern": look.pattern,
            })  # fmt: skip
    if config.most_pictures > 1:
        with atomic_write(folder / "images.csv") as path, path.open("w", newline="") as stream:
            views = csv.writer(stream)
            views.writerow(["product_id", "image", "position"])
            for number in range(config.products):
                views.writerows((f"p{number:05d}", _image(number, n), n) for n in range(1, pictures_of(number, config)))
    count = 0
    with atomic_write(folder / "photos.csv") as path, path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["photo", "product_id", "split", "taken_at"])
        for number in range(config.products):
            for n in range(config.photos_per_product):
                day = FIRST_DAY + timedelta(days=(number * 37 + n * 101) % 330)
                split = _split(number, n, config.photos_per_product)
                rows.writerow([_photo(number, n), f"p{number:05d}", split, day.strftime("%Y-%m-%d")])
                count += 1
    return count


def _split(number: int, n: int, photos: int) -> str:
    if photos < 2 or n < photos - 1:
        return "train"
    return "test" if number % 9 == 1 else "val" if number % 3 == 0 else "train"
