"""Real photos enlarged by augmentation, as vectors: what an index of one's own pictures looks like, at any size.

    python -m tests.benchmarks.photo_vectors --catalogue FOLDER [--rows 1000000] [--out build/bench/photo-vectors.npz]

Trains the pair of the preset demo on the catalogue, then embeds with the student changed views of the photos it was trained on
(cropped, turned, other light), each photo as often as needed: the base. The queries are the held-out photos as they are. Other
benchmarks take the file as their `--preset`. Writes base (rows, d) float16 and queries (nq, d) float32.
"""

import argparse
import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from serving.contract.files import atomic_write
from tasks.catalog.snapshot import take_snapshot
from tasks.encoder.data.augment import Augmentation, augment, to_float
from tasks.encoder.data.photos import Photos, read_training_set
from tasks.encoder.data.pixels import decode_some
from tasks.encoder.presets import preset
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import restore_student

BATCH = 256
EVERY_S = 20.0


class PhotoVectors:
    """The vectors of a file, drawn in its order from a place that a seed chooses; like tests/benchmarks/vectors.py."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as kept:
            self.rows, self.asked = kept["base"], kept["queries"]
        self.at = 0

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def seeded(self, seed: int) -> "PhotoVectors":
        self.at = seed * 100_003 % len(self.rows)
        return self

    def base(self, n: int) -> np.ndarray:
        """(n, d) float32. Raises ValueError for more than the file holds."""
        if n > len(self.rows):
            raise ValueError(f"{n} vectors of a file of {len(self.rows)}")
        places = np.arange(self.at, self.at + n) % len(self.rows)
        self.at += n
        return self.rows[places].astype(np.float32)

    def queries(self, n: int) -> np.ndarray:
        """(n, d) float32, at most as many as there are."""
        return self.asked[:n]


def photo_vectors(catalogue: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The base (rows, d) float16 and the queries (nq, d) float32 of a catalogue folder."""
    config = preset("demo_random")
    with TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        snapshot = take_snapshot(catalogue, f"{scratch}/snapshots", "bench")
        teacher = train_teacher(snapshot.uri, config, work, no_log)
        student = restore_student(distil_student(snapshot.uri, teacher, config, work, no_log), config)
        training = read_training_set(snapshot.uri)
    print(f"trained in {teacher.seconds:.0f} s", flush=True)

    def pixels(photos: Photos, size: int) -> torch.Tensor:
        spec = config.preprocess.model_copy(update={"size": size})
        decoded, usable = decode_some(list(photos.uris), training.root, spec)
        return torch.from_numpy(decoded[usable])

    with torch.inference_mode():
        queries = student(to_float(pixels(training.held_out(), config.preprocess.size))).numpy()
        return _views(student, pixels(training.split("train"), config.cache_size), rows, config.preprocess.size), queries


def _views(student: torch.nn.Module, pixels: torch.Tensor, rows: int, size: int) -> np.ndarray:
    how, chance, began = Augmentation(), torch.Generator().manual_seed(5), time.monotonic()
    parts: list[np.ndarray] = []
    told, done = began, 0
    while done < rows:
        chosen = torch.randint(0, len(pixels), (min(BATCH, rows - done),), generator=chance)
        parts.append(student(augment(pixels[chosen], size, how, chance)).numpy().astype(np.float16))
        done += len(chosen)
        if time.monotonic() > told + EVERY_S:
            told = time.monotonic()
            print(f"{done} of {rows} views, {done / (told - began):.0f} a second", flush=True)
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("build/bench/photo-vectors.npz"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # how far the training is
    args.out.parent.mkdir(parents=True, exist_ok=True)
    base, queries = photo_vectors(args.catalogue, args.rows)
    with atomic_write(args.out) as path, path.open("wb") as stream:
        np.savez(stream, base=base, queries=queries)
    print(f"{args.out}: base {base.shape}, queries {queries.shape}")


if __name__ == "__main__":
    main()
