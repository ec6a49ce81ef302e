"""Uploads the vectors of one shard into a collection, in blocks, and verifies a sample of what arrived."""

import hashlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.files import FileRef
from serving.index.collection import Collection
from tasks import storage
from tasks.errors import VitrineError
from tasks.index.engine_collections import Collections, folder_of

log = logging.getLogger(__name__)

BLOCK_ROWS = 5_000
"""Vectors of one call: 10 MB at dimension 512."""
SAMPLES = 256
"""Vectors of each shard, spread over it, that are read back before a version uses the collection."""


class Upload:
    """Uploads one shard's `rows` vectors under the ids from `first` on, in order.

    A killed upload resumes after the last block recorded in the store; where the engine lost any of them, it begins anew.
    """

    def __init__(self, collections: Collections, store: str, name: str, shard: int, first: int, rows: int) -> None:
        self.collections, self.name, self.first = collections, name, first
        self.stem = storage.join(folder_of(store, name), f"shard-{shard:05d}")
        self.hash, self.rows_added = hashlib.sha256(), 0
        self.sample_rows = np.unique(np.linspace(0, max(rows - 1, 0), min(SAMPLES, rows)).astype(int))
        self.samples: list[np.ndarray] = []
        self.rows_uploaded = self._resume_from()

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """A function that takes the next vectors (n, d) float32; at the end their sample is written to the store."""
        yield self._add
        sample = io.BytesIO()
        vectors = np.concatenate(self.samples) if self.samples else np.zeros((0, 0))
        np.savez(sample, ids=self.sample_rows + self.first, vectors=vectors)
        storage.write_bytes(f"{self.stem}.npz", sample.getvalue())

    def rearranged(self, label: str) -> np.ndarray | None:
        return None

    def write(self, folder: Path, name: str) -> FileRef | None:
        """No file: the vectors lie in the engine."""
        return None

    @property
    def digest(self) -> str:
        """sha256 of all vectors added, as little-endian float32."""
        return self.hash.hexdigest()

    def _add(self, vectors: np.ndarray) -> None:
        for start in range(0, len(vectors), BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[start : start + BLOCK_ROWS], "<f4")
            stop = self.rows_added + len(block)
            if stop > self.rows_uploaded:
                self.collections.put(self.name, self.first + self.rows_added, block)
                storage.write_json(f"{self.stem}.json", {"rows": stop})
            self.hash.update(block.tobytes())
            sampled = self.sample_rows[(self.sample_rows >= self.rows_added) & (self.sample_rows < stop)]
            self.samples.append(block[sampled - self.rows_added])
            self.rows_added = stop

    def _resume_from(self) -> int:
        """The number of rows uploaded by an earlier attempt, where the engine still holds all of them; else 0."""
        progress = f"{self.stem}.json"
        rows = int(storage.read_json(progress)["rows"]) if storage.exists(progress) else 0
        if rows and self.collections.count(self.name, self.first, self.first + rows) != rows:
            log.warning(
                "%s: the engine no longer holds the %d rows of an earlier attempt; they are uploaded again", self.name, rows
            )
            return 0
        return rows


def whole_digest(digests: list[str]) -> str:
    """The digest of a collection: over those of its shards, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def check_sample(collection: Collection, store: str, name: str, shards: int) -> int:
    """Compares the sample of each shard with what the collection gives back; returns how many vectors agree, all of them.

    Raises VitrineError naming the first id that differs.
    """
    agreed = 0
    for shard in range(shards):
        stem = storage.join(folder_of(store, name), f"shard-{shard:05d}")
        sample = np.load(io.BytesIO(storage.read_bytes(f"{stem}.npz")))
        ids, vectors = sample["ids"], sample["vectors"]
        if not len(ids):
            continue
        wrong = (collection.vectors(ids) != vectors).any(axis=1)
        if wrong.any():
            raise VitrineError(
                f"collection {name}: the vector of id {ids[wrong][0]} is not the one that was uploaded; build the shards again"
            )
        agreed += len(ids)
    return agreed
