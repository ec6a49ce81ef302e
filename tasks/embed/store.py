"""The embedding store: image sha256 -> vector, one folder per encoder version, append-only.

A part counts once its commit file exists; the commit also names the images of its chunk that were rejected, so that one small
file says everything about a chunk. Part names follow from the images in them: the same chunk made twice is the same file.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import storage

SHA_TYPE = pa.binary(32)


@dataclass(frozen=True)
class Commit:
    """One finished chunk: its part file ("" when nothing in it was usable) and what was rejected."""

    name: str
    rows: int
    sha256: str
    bytes: int
    run: str
    rejected: list[dict[str, str]]


class EmbeddingStore:
    """The store of one encoder version at `uri`, for vectors of dimension `dim`."""

    def __init__(self, uri: str, dim: int) -> None:
        self.uri, self.dim = uri.rstrip("/"), dim

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([
            ("image_sha256", SHA_TYPE), ("vector", pa.list_(pa.float16(), self.dim)),
            ("width", pa.int32()), ("height", pa.int32()), ("embedded_at", pa.timestamp("us", tz="UTC")),
        ])  # fmt: skip

    def write(self, table: pa.Table, rejected: list[dict[str, str]], run: str) -> Commit:
        """Publishes a chunk's vectors (rows of `schema`) and its rejected images ({sha256, reason, detail, image_uri})."""
        members = sorted([*table["image_sha256"].to_pylist(), *(bytes.fromhex(r["sha256"]) for r in rejected)])
        name = f"part-{hashlib.sha256(b''.join(members)).hexdigest()[:20]}"
        digest, size = "", 0
        if len(table):
            uri = storage.join(self.uri, f"{name}.parquet")
            with storage.writer(uri) as stream:
                pq.write_table(table.cast(self.schema), stream, compression="none")
            digest, size = storage.sha256(uri), storage.size(uri)
        commit = Commit(name, len(table), digest, size, run, rejected)
        storage.write_json(storage.join(self.uri, "_commits", f"{name}.json"), commit.__dict__)
        return commit

    def commits(self) -> list[Commit]:
        """Every finished chunk, in order of name."""
        return [Commit(**storage.read_json(uri)) for uri in storage.listing(storage.join(self.uri, "_commits"), ".json")]

    def part(self, commit: Commit, columns: list[str] | None = None) -> pa.Table:
        """A part's rows. Raises ValueError when its size is not the committed one (a damaged store)."""
        uri = storage.join(self.uri, f"{commit.name}.parquet")
        if storage.size(uri) != commit.bytes:
            raise ValueError(
                f"{uri}: {storage.size(uri)} bytes, committed were {commit.bytes}; delete its commit file to embed again"
            )
        fs, path = storage.filesystem(uri)
        return pq.read_table(path, filesystem=fs, columns=columns, memory_map=False)

    def known(self) -> pa.Array:
        """The sha256 of every embedded image, in the order of `commits`."""
        parts = [self.part(c, ["image_sha256"])["image_sha256"].combine_chunks() for c in self.commits() if c.rows]
        return pa.concat_arrays(parts) if parts else pa.array([], SHA_TYPE)

    def rejected(self) -> dict[str, dict[str, Any]]:
        """Rejected images by hex sha256."""
        return {r["sha256"]: r for c in self.commits() for r in c.rejected}

    def vectors(self, wanted: pa.Array) -> np.ndarray:
        """Vectors (n, dim) float16 of the images `wanted` (n,), in their order. Raises KeyError for one that is not there."""
        found = np.zeros((len(wanted), self.dim), np.float16)
        missing = np.ones(len(wanted), bool)
        places = _Places(wanted)
        for commit in self.commits():
            if not commit.rows:
                continue
            table = self.part(commit, ["image_sha256", "vector"])
            rows, where = places.of(table["image_sha256"])
            if len(rows):
                column = table["vector"].combine_chunks()
                matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), self.dim)
                found[where] = matrix[rows]
                missing[where] = False
        if missing.any():
            raise KeyError(f"image {wanted[int(np.flatnonzero(missing)[0])].as_py().hex()} has no vector in {self.uri}")
        return found


class _Places:
    """Finds where each of a list of checksums (with repeats) lies: by their first 8 bytes, sorted, then compared whole."""

    def __init__(self, wanted: pa.Array) -> None:
        self.bytes = _bytes(wanted)
        words = _words(self.bytes)
        self.order = np.argsort(words, kind="stable")
        self.sorted = words[self.order]

    def of(self, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the column, places in the wanted list) of every match."""
        candidates = _bytes(column.combine_chunks())
        words = _words(candidates)
        first = np.searchsorted(self.sorted, words, "left")
        counts = np.searchsorted(self.sorted, words, "right") - first
        rows = np.repeat(np.arange(len(words)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self.order[np.repeat(first, counts) + offsets]
        same = (candidates[rows] == self.bytes[places]).all(axis=1)
        return rows[same], places[same]


def _bytes(column: pa.Array) -> np.ndarray:
    """A column of checksums as bytes (n, 32) uint8."""
    if len(column) == 0:
        return np.zeros((0, 32), np.uint8)
    return np.frombuffer(column.buffers()[1], np.uint8)[column.offset * 32 : (column.offset + len(column)) * 32].reshape(-1, 32)


def _words(checksums: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(checksums[:, :8]).view(np.uint64).ravel()
