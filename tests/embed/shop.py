"""A small shop for the embedding tests: one picture per product, drawn from its number."""

from pathlib import Path

import numpy as np
from PIL import Image

from tasks.catalog.snapshot import Snapshot, take_snapshot
from tests.tiny import tiny_encoder


def picture(path: Path, number: int, side: int = 48) -> None:
    """A coarse random mosaic, different for every number, saved by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST).save(path)


def shop(folder: Path, products: int) -> Path:
    """products.csv and images/p<i>.jpg."""
    rows = ["product_id,title,image"]
    for number in range(products):
        picture(folder / "images" / f"p{number}.jpg", number)
        rows.append(f"p{number},Product {number},images/p{number}.jpg")
    (folder / "products.csv").write_text("\n".join(rows) + "\n")
    return folder


def snapshot(folder: Path, store: Path, name: str = "s1") -> Snapshot:
    return take_snapshot(str(folder), str(store / "snapshots"), name)


def encoder(folder: Path) -> Path:
    tiny_encoder(folder)
    return folder
