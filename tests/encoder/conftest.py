"""A catalogue small enough to train on in seconds: coloured squares, each product with two train photos and one held out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.catalog.snapshot import Snapshot, take_snapshot

PRODUCTS = 12


def draw_catalogue(folder: Path, products: int = PRODUCTS, photos: int = 3) -> Path:
    """A manifest folder; photo i of a product is held out (val) when it is the last."""
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    rows, photo_rows = ["product_id,title,category,image"], ["photo,product_id,split"]
    for p in range(products):
        colour = rng.integers(0, 256, 3)
        kind = ("mug", "bag", "shoe")[p % 3]
        rows.append(f"p{p:03d},{kind} number {p},goods > {kind},images/p{p:03d}.png")
        Image.fromarray(_picture(colour, rng)).save(folder / f"images/p{p:03d}.png")
        for i in range(photos):
            name = f"images/p{p:03d}-photo{i}.jpg"
            Image.fromarray(_picture(colour, rng)).save(folder / name, quality=90)
            photo_rows.append(f"{name},p{p:03d},{'val' if i == photos - 1 else 'train'}")
    (folder / "products.csv").write_text("\n".join(rows) + "\n")
    (folder / "photos.csv").write_text("\n".join(photo_rows) + "\n")
    return folder


def _picture(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = rng.integers(100, 156, (40, 40, 3)).astype(np.float64)
    picture[8:32, 8:32] = colour
    return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("catalogue")
    return take_snapshot(str(draw_catalogue(folder / "shop")), str(folder / "snapshots"), "one")
