"""Pictures as pixels: decoded once into an array on disk, or streamed when that array would be too large."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serving.contract.files import atomic_write
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks.embed.images import read_image
from tasks.errors import TrainingError
from tasks.progress import Progress

DECODING_THREADS = 4
BLOCK = 512
MAX_UNREADABLE = 0.2
"""A larger share of unreadable pictures is a broken catalogue, not bad luck."""


@dataclass(frozen=True)
class Decoding:
    """How pictures are decoded on this machine; does not affect what is trained."""

    cache_bytes: int = 8 << 30
    """Decoded pictures are kept on disk while a set of them fits in so many bytes; a larger set is decoded as it is used."""
    workers: int = 2
    """Processes that decode for a training whose pictures are not kept."""
    max_unreadable: float = MAX_UNREADABLE
    max_untrainable: float = 0.01
    """Share of labelled products without a readable picture that is left out with a warning; more is an error."""

    def fits_cache(self, pictures: int, spec: PreprocessSpec) -> bool:
        """Whether this many pictures are decoded once and cached on disk."""
        return pictures * spec.size**2 * 3 <= self.cache_bytes


@dataclass(frozen=True)
class Survey:
    """Which pictures are readable, and the sha256 of their bytes (n, 32) uint8, zeros for unreadable ones."""

    usable: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures (n, size, size, 3) uint8 on disk; `usable` and `digests` as in `Survey`."""

    array: np.ndarray
    usable: np.ndarray
    digests: np.ndarray


def read_pixels(uris: Sequence[str], root: str, spec: PreprocessSpec) -> Iterator[np.ndarray | None]:
    """Pixels of each picture in order, None for an unreadable one; decoded concurrently."""
    return (pixels for pixels, _ in _read(uris, root, spec))


def _read(uris: Sequence[str], root: str, spec: PreprocessSpec) -> Iterator[tuple[np.ndarray | None, bytes]]:
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(uris), BLOCK):
            yield from pool.map(partial(_read_one, root=root, spec=spec), uris[start : start + BLOCK])


def _read_one(uri: str, root: str, spec: PreprocessSpec) -> tuple[np.ndarray | None, bytes]:
    try:
        data = read_image(uri, root)
        return decode(data, spec), hashlib.sha256(data).digest()
    except ImageRejected:
        return None, bytes(32)


def content_digests(uris: Sequence[str], root: str) -> list[bytes]:
    """sha256 of each picture's bytes; empty for an unreadable one."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return list(pool.map(partial(_digest, root=root), uris))


def _digest(uri: str, root: str) -> bytes:
    try:
        return hashlib.sha256(read_image(uri, root)).digest()
    except ImageRejected:
        return b""


def cached_pixels(
    uris: Sequence[str], root: str, spec: PreprocessSpec, folder: Path, name: str, max_unreadable: float = MAX_UNREADABLE
) -> Pixels:
    """Decodes the pictures once into `folder`; later calls with the same uris and spec map the same file.

    The array is read through a memory map, so its size is bounded by the disk. Raises TrainingError when more than
    the share `max_unreadable` of the pictures cannot be read; 1.0 for pictures that were looked at before.
    """
    path, seen = _paths(uris, root, spec, folder, name)
    if not (seen.is_file() and path.is_file()):
        _decode_all(uris, root, spec, path, seen, name, max_unreadable)
    digests = np.load(seen)
    return Pixels(np.load(path, mmap_mode="r"), digests.any(axis=1), digests)


def survey(
    uris: Sequence[str], root: str, spec: PreprocessSpec, folder: Path, name: str, max_unreadable: float = MAX_UNREADABLE
) -> Survey:
    """Like `cached_pixels` without storing pixels; cached in `folder`. Raises TrainingError."""
    _, seen = _paths(uris, root, spec, folder, name)
    if not seen.is_file():
        _decode_all(uris, root, spec, None, seen, name, max_unreadable)
    digests = np.load(seen)
    return Survey(digests.any(axis=1), digests)


def _paths(uris: Sequence[str], root: str, spec: PreprocessSpec, folder: Path, name: str) -> tuple[Path, Path]:
    digest = hashlib.sha256(json.dumps([list(uris), root, spec.model_dump()]).encode()).hexdigest()[:16]
    return folder / f"{name}-{digest}.npy", folder / f"{name}-{digest}.seen.npy"


def _decode_all(
    uris: Sequence[str], root: str, spec: PreprocessSpec, path: Path | None, seen: Path, name: str, max_unreadable: float
) -> None:
    """Decodes all pictures; stores pixels at `path` unless None, and the survey at `seen`, last."""
    digests = np.zeros((len(uris), 32), np.uint8)
    shape = (len(uris), spec.size, spec.size, 3)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(f"decode {name}", len(uris), "images"))
        array = None
        if path is not None:
            temporary = stack.enter_context(atomic_write(path))
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for i, (pixels, digest) in enumerate(_read(uris, root, spec)):
            if pixels is not None:
                digests[i] = np.frombuffer(digest, np.uint8)
                if array is not None:
                    array[i] = pixels
            progress.add()
        if array is not None:
            array.flush()
    rejected = [uri for uri, digest in zip(uris, digests, strict=True) if not digest.any()]
    if len(rejected) > max_unreadable * len(uris):
        raise TrainingError(
            f"{len(rejected)} of {len(uris)} {name} pictures cannot be read, allowed {max_unreadable * 100:.3g} %: VITRINE_MAX_UNREADABLE "
            f"(first: {rejected[0]}); check the catalogue's paths"
        )
    seen.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(seen) as temporary, temporary.open("wb") as stream:
        np.save(stream, digests)


def pixel_blocks(
    uris: Sequence[str], root: str, spec: PreprocessSpec, folder: Path, name: str, decoding: Decoding
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pictures as blocks: pixels (n, size, size, 3) uint8 and `usable` (n,) bool; cached on disk when they fit."""
    if decoding.fits_cache(len(uris), spec):
        kept = cached_pixels(uris, root, spec, folder, name, decoding.max_unreadable)
        for start in range(0, len(uris), BLOCK):
            yield np.asarray(kept.array[start : start + BLOCK]), kept.usable[start : start + BLOCK]
        return
    for start in range(0, len(uris), BLOCK):
        yield decode_some(uris[start : start + BLOCK], root, spec)


def decode_some(uris: Sequence[str], root: str, spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, size, size, 3) uint8, black where unreadable, and the mask of readable ones (n,) bool."""
    pixels, usable = np.zeros((len(uris), spec.size, spec.size, 3), np.uint8), np.zeros(len(uris), bool)
    for i, found in enumerate(read_pixels(uris, root, spec)):
        if found is not None:
            pixels[i], usable[i] = found, True
    return pixels, usable
