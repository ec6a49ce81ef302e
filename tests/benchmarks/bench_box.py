"""Recall with and without a box: held-out photos pasted into cluttered backgrounds, as a shopper's photo of a shelf shows them.

    python -m tests.benchmarks.bench_box <encoder folder> <catalogue folder>

Every held-out photo is asked as it is; then pasted, at a fifth to a half of the side, into a mosaic of other products' photos, and
asked whole, by its exact box, and by a box drawn by hand (each edge off by up to a tenth of its length).
"""

import argparse
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
from PIL import Image, ImageOps

from serving.contract.box import Box
from serving.contract.encoder import EncoderFolder
from serving.contract.preprocess import decode
from tasks.encoder.evaluate.retrieval_metrics import interval, ranks

SIDE = 1600
TILES = 4
SLOPPY = 0.1


@dataclass(frozen=True)
class Scene:
    """A cluttered photo (JPEG bytes), and where in it the thing is."""

    data: bytes
    box: Box


def scene(photo: Path, others: list[Path], rng: np.random.Generator) -> Scene:
    """The photo, at a random place and size, on a mosaic of others."""
    ground = Image.new("RGB", (SIDE, SIDE))
    tile = SIDE // TILES
    for n, other in enumerate(rng.choice(len(others), TILES * TILES, replace=False)):
        ground.paste(ImageOps.fit(_opened(others[other]), (tile, tile)), (n % TILES * tile, n // TILES * tile))
    thing = _opened(photo)
    scale = rng.uniform(0.2, 0.5) * SIDE / max(thing.size)
    thing = thing.resize((max(1, round(thing.width * scale)), max(1, round(thing.height * scale))), Image.Resampling.LANCZOS)
    left, top = (int(rng.integers(0, SIDE - length + 1)) for length in thing.size)
    ground.paste(thing, (left, top))
    stream = io.BytesIO()
    ground.save(stream, "JPEG", quality=90)
    box = Box(x=left / SIDE, y=top / SIDE, width=thing.width / SIDE, height=thing.height / SIDE)
    return Scene(stream.getvalue(), box)


def drawn_by_hand(box: Box, rng: np.random.Generator) -> Box:
    """The box with each edge off by up to SLOPPY of its length."""
    moves = rng.uniform(-SLOPPY, SLOPPY, 4) * [box.width, box.height, box.width, box.height]
    left, top = max(0.0, box.x + moves[0]), max(0.0, box.y + moves[1])
    right, bottom = min(1.0, box.x + box.width + moves[2]), min(1.0, box.y + box.height + moves[3])
    return Box(x=left, y=top, width=right - left, height=bottom - top)


def _opened(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="the folder of an encoder version")
    parser.add_argument("catalog", type=Path, help="a folder with products.csv and photos.csv")
    parser.add_argument("--photos", type=int, default=10_000, help="at most so many held-out photos")
    chosen = parser.parse_args()
    opened = EncoderFolder(chosen.encoder)
    spec, document, query = opened.manifest.preprocess, opened.open(opened.manifest.document), opened.open(opened.manifest.query)
    products = pa_csv.read_csv(chosen.catalog / "products.csv").to_pylist()
    photos = pa_csv.read_csv(chosen.catalog / "photos.csv").to_pylist()
    held_out = [p for p in photos if p["split"] == "val"][: chosen.photos]
    row = {p["product_id"]: n for n, p in enumerate(products)}
    pictures = [(chosen.catalog / p["image"]).read_bytes() for p in products]
    xb = np.concatenate([document.encode(decode(p, spec)[None]) for p in pictures])
    rng = np.random.default_rng(0)
    vectors: dict[str, list[np.ndarray]] = {
        "the photo alone": [],
        "pasted, whole": [],
        "pasted, its box": [],
        "pasted, box by hand": [],
    }
    decode_ms: dict[str, list[float]] = {name: [] for name in vectors}
    for photo in held_out:
        others = [chosen.catalog / p["photo"] for p in photos if p["product_id"] != photo["product_id"] and p["split"] == "train"]
        made = scene(chosen.catalog / photo["photo"], others, rng)
        asked = {
            "the photo alone": ((chosen.catalog / photo["photo"]).read_bytes(), None), "pasted, whole": (made.data, None),
            "pasted, its box": (made.data, made.box), "pasted, box by hand": (made.data, drawn_by_hand(made.box, rng)),
        }  # fmt: skip
        for name, (data, box) in asked.items():
            began = time.perf_counter()
            pixels = decode(data, spec, box=box)
            decode_ms[name].append(1e3 * (time.perf_counter() - began))
            vectors[name].append(query.encode(pixels[None])[0])
    right = np.array([row[p["product_id"]] for p in held_out])
    print(f"{len(held_out)} held-out photos, {len(products)} products, {opened.manifest.query} on {opened.manifest.document}")
    for name, found in vectors.items():
        rank = ranks(np.stack(found) @ xb.T, right)
        figures = ", ".join(
            f"Recall@{k} {i.value:.3f} ({i.low:.3f} to {i.high:.3f})" for k in (1, 10) for i in [interval(rank <= k)]
        )
        print(f"{name:20} {figures}; decode {np.median(decode_ms[name]):.1f} ms")


if __name__ == "__main__":
    main()
