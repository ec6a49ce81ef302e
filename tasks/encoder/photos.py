"""The training set of a snapshot: product pictures, photos and titles, decoded once into an array on disk."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serving.contract.files import written_whole
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks.catalog.snapshot import photo_table, product_table, read_snapshot
from tasks.embed.images import read_image
from tasks.errors import TrainingError
from tasks.progress import Progress

DECODING_THREADS = 4
MAX_REJECTED = 0.2
"""A larger share of unreadable pictures is a broken catalogue, not bad luck."""


@dataclass(frozen=True)
class Photos:
    """Pictures with the product each shows: parallel lists. `products` are row numbers into the product list."""

    uris: tuple[str, ...]
    products: np.ndarray

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True)
class TrainingSet:
    """What an encoder is trained and judged on. `by_split` holds the photos of train, val and test; no photo is in two."""

    product_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[str, ...]
    image_uris: tuple[str, ...]
    by_split: dict[str, Photos]
    root: str
    content_sha256: str

    def split(self, name: str) -> Photos:
        return self.by_split[name]

    def held_out(self) -> Photos:
        """The photos that recall is measured on: val, or test where there is no val."""
        return self.by_split["val"] if len(self.by_split["val"]) else self.by_split["test"]


def read_training_set(snapshot_uri: str) -> TrainingSet:
    """Products and photos of a snapshot. Raises TrainingError when it has no training photo, or one photo in two splits."""
    snapshot = read_snapshot(snapshot_uri)
    products = product_table(snapshot_uri, ["product_id", "title", "category", "image_uri"])
    photos = photo_table(snapshot_uri)
    ids = products["product_id"].to_pylist()
    row = {product_id: i for i, product_id in enumerate(ids)}
    seen: dict[str, str] = {}
    parts: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "val": ([], []), "test": ([], [])}
    for uri, product_id, split in zip(*(photos[c].to_pylist() for c in ("photo_uri", "product_id", "split")), strict=True):
        if seen.setdefault(uri, split) != split:
            raise TrainingError(f"photo {uri!r} is in the splits {seen[uri]} and {split}; a photo may be in one only")
        parts[split][0].append(uri)
        parts[split][1].append(row[product_id])
    if not parts["train"][0]:
        raise TrainingError(
            f"snapshot {snapshot.id} has no training photos; add rows with split=train to photos.csv (or the photos table)"
        )
    return TrainingSet(
        product_ids=tuple(ids),
        titles=tuple(products["title"].to_pylist()),
        categories=tuple((c or [""])[0] for c in products["category"].to_pylist()),
        image_uris=tuple(products["image_uri"].to_pylist()),
        by_split={k: Photos(tuple(uris), np.asarray(rows, np.int64)) for k, (uris, rows) in parts.items()},
        root=snapshot.image_root,
        content_sha256=snapshot.content_sha256,
    )


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures (n, size, size, 3) uint8 on disk; `usable[i]` says whether picture i could be read."""

    array: np.ndarray
    usable: np.ndarray


def read_pixels(uris: Sequence[str], root: str, spec: PreprocessSpec) -> Iterator[np.ndarray | None]:
    """Each picture's pixels in order, None for one that cannot be read; several are decoded at a time."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(uris), 512):
            yield from pool.map(partial(_read_one, root=root, spec=spec), uris[start : start + 512])


def _read_one(uri: str, root: str, spec: PreprocessSpec) -> np.ndarray | None:
    try:
        return decode(read_image(uri, root), spec)
    except ImageRejected:
        return None


def cached_pixels(uris: Sequence[str], root: str, spec: PreprocessSpec, folder: Path, name: str) -> Pixels:
    """The pictures decoded once into `folder`; a later call with the same uris and spec maps the same file.

    The array is read through a memory map, so its size is bounded by the disk. Raises TrainingError when more than a fifth
    of the pictures cannot be read.
    """
    digest = hashlib.sha256(json.dumps([list(uris), root, spec.model_dump()]).encode()).hexdigest()[:16]
    path, usable_path = folder / f"{name}-{digest}.npy", folder / f"{name}-{digest}.usable.npy"
    if not usable_path.is_file():
        _decode_all(uris, root, spec, path, usable_path, name)
    usable = np.load(usable_path)
    return Pixels(np.load(path, mmap_mode="r"), usable)


def _decode_all(uris: Sequence[str], root: str, spec: PreprocessSpec, path: Path, usable_path: Path, name: str) -> None:
    usable = np.zeros(len(uris), bool)
    shape = (len(uris), spec.size, spec.size, 3)
    with written_whole(path) as temporary, Progress(f"decode {name}", len(uris), "images") as progress:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for i, pixels in enumerate(read_pixels(uris, root, spec)):
            if pixels is not None:
                array[i], usable[i] = pixels, True
            progress.add()
        array.flush()
    rejected = [uri for uri, good in zip(uris, usable, strict=True) if not good]
    if len(rejected) > MAX_REJECTED * len(uris):
        raise TrainingError(
            f"{len(rejected)} of {len(uris)} {name} pictures cannot be read (first: {rejected[0]}); check the catalogue's paths"
        )
    with written_whole(usable_path) as temporary, temporary.open("wb") as stream:
        np.save(stream, usable)
