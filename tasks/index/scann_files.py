"""Writes the base segment of a shard for ScaNN. Its k-means begins at random: the same vectors give other bytes each time."""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.files import FileRef, atomic_write, describe
from serving.index.scann_engine import SUFFIX, VECTORS
from tasks.index.families import list_count

SMALL = 1000
"""Fewer rows are compared one by one: too few for a tree, and for codes."""
THRESHOLD, BLOCK = 0.2, 2
"""ScaNN's advice for vectors of unit length: errors along a vector count more from a similarity of 0.2 on; a code of four bits for
two dimensions."""
PER_LEAF, SAMPLE = 39, 100_000
"""Vectors that a tree is trained on, a leaf and at least."""


class ScannShard:
    """Takes the vectors (rows, d) float32 of a shard, in order, and writes ScaNN's index of them."""

    digest = ""

    def __init__(self, rows: int, dim: int) -> None:
        self.x, self.place = np.empty((rows, dim), np.float32), 0

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """A function that takes the next vectors (n, d)."""
        yield self._add

    def rearranged(self, label: str) -> np.ndarray | None:
        return None

    def write(self, folder: Path, name: str) -> FileRef:
        """Trains on what was added and writes `<name>.scann`."""
        path = folder / f"{name}{SUFFIX}"
        with tempfile.TemporaryDirectory(dir=folder) as made, atomic_write(path) as temporary:
            if len(self.x):
                make_searcher(self.x).serialize(made, relative_path=True)
            else:
                np.save(Path(made) / VECTORS, self.x)
            with tarfile.open(temporary, "w") as tar:
                for file in sorted(Path(made).iterdir()):
                    tar.add(file, file.name)
        return describe(path, path.name)

    def _add(self, vectors: np.ndarray) -> None:
        self.x[self.place : self.place + len(vectors)] = vectors
        self.place += len(vectors)


def make_searcher(x: np.ndarray) -> Any:
    """ScaNN's searcher over vectors x (n, d): a tree, codes, and the exact vectors for reordering; few vectors as they are."""
    from scann.scann_ops.py import scann_ops_pybind

    builder = scann_ops_pybind.builder(x, 1, "dot_product")
    if len(x) < SMALL:
        return builder.score_brute_force().build()
    leaves = list_count(len(x))
    tree = builder.tree(leaves, max(1, leaves // 10), training_sample_size=max(SAMPLE, PER_LEAF * leaves))
    return tree.score_ah(BLOCK, anisotropic_quantization_threshold=THRESHOLD).reorder(1).build()
