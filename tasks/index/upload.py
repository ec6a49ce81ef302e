"""Uploads the vectors of one shard into a collection, block by block, and proves what arrived."""

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
    """Uploads one shard's vectors, which follow each other from id `first` on, in order.

    An upload that was killed goes on after the last block that it noted in the store; what the engine lost since is uploaded again.
    """

    def __init__(self, collections: Collections, store: str, name: str, shard: int, first: int, rows: int) -> None:
        self.collections, self.name, self.first = collections, name, first
        self.stem = storage.join(folder_of(store, name), f"shard-{shard:05d}")
        self.hash, self.place = hashlib.sha256(), 0
        self.wanted = np.unique(np.linspace(0, max(rows - 1, 0), min(SAMPLES, rows)).astype(int))
        self.kept: list[np.ndarray] = []
        self.done = self._done_before()

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """A function that takes the next vectors (n, d) float32; at the end the sample of them lies in the store."""
        yield self._add
        sample = io.BytesIO()
        np.savez(sample, ids=self.wanted + self.first, vectors=np.concatenate(self.kept) if self.kept else np.zeros((0, 0)))
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
            stop = self.place + len(block)
            if stop > self.done:
                self.collections.put(self.name, self.first + self.place, block)
                storage.write_json(f"{self.stem}.json", {"rows": stop})
            self.hash.update(block.tobytes())
            mine = self.wanted[(self.wanted >= self.place) & (self.wanted < stop)]
            self.kept.append(block[mine - self.place])
            self.place = stop

    def _done_before(self) -> int:
        """The rows of an earlier attempt that the engine still holds, all of them or none."""
        noted = f"{self.stem}.json"
        rows = int(storage.read_json(noted)["rows"]) if storage.exists(noted) else 0
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
