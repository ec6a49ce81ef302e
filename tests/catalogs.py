"""A small catalogue folder for tests: a few drawn pictures, in milliseconds."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, side: int = 48) -> Path:
    """A JPEG of random blocks, another one for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(path, quality=95)
    return path


def small_catalog(folder: Path, products: int = 12, photos: int = 3) -> Path:
    """products.csv, photos.csv and their pictures: each product's photos are its own blocks, a little changed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, shown = [], []
    for n in range(products):
        picture(folder / f"images/{n}.jpg", n)
        rows.append({
            "product_id": f"p{n:03d}", "title": f"product {n}", "brand": f"brand {n % 3}", "category": f"kind {n % 2} > leaf {n % 4}",
            "price": 10 + n, "currency": "EUR", "in_stock": int(n % 5 != 0), "image": f"images/{n}.jpg",
        })  # fmt: skip
        for m in range(photos):
            picture(folder / f"photos/{n}-{m}.jpg", n, side=64 + 8 * m)
            shown.append(
                {"photo": f"photos/{n}-{m}.jpg", "product_id": f"p{n:03d}", "split": "val" if m == photos - 1 else "train"}
            )
    write_table(folder / "products.csv", rows)
    write_table(folder / "photos.csv", shown)
    return folder


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read_table(path: Path) -> list[dict]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
