"""The embedding store: image sha256 -> vector, one append-only folder per encoder version.

A part counts once its commit file exists; the commit also names the images of its chunk that were rejected, so that one small
file says everything about a chunk. Part names follow from the images in them: the same chunk made twice is the same file.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.addresses import error_line
from serving.contract.palette import PALETTE, PALETTE_TYPE
from serving.contract.segments import fixed_bytes
from tasks import storage
from tasks.errors import VitrineError

SHA_TYPE = pa.binary(32)
LASTING = frozenset({"empty", "too_many_bytes", "not_an_image", "format", "too_many_pixels", "too_many_frames", "truncated"})
"""Reasons that lie in the bytes themselves: such an image is tried again only when its bytes change."""
READERS = 16
AHEAD = 2
"""Parts read, checked and decoded ahead of the one in use: as many as there are cores to do it."""
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How Parquet holds vectors. They are noise to a dictionary: with one they are written and read at a seventh of the speed."""

T = TypeVar("T")
R = TypeVar("R")


def vector_type(dim: int) -> pa.DataType:
    """Arrow type of a vector: `dim` non-null float16, which saves Parquet 4 bytes of levels per value."""
    return pa.list_(pa.field("item", pa.float16(), nullable=False), dim)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors (n, dim) float16 as an Arrow column, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=vector_type(vectors.shape[1]))


@dataclass(frozen=True)
class Commit:
    """One finished chunk: its part file (none for 0 rows) and its rejected images ({sha256, image_uri, reason, detail})."""

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
            pa.field("image_sha256", SHA_TYPE, nullable=False), pa.field("vector", vector_type(self.dim), nullable=False),
            (PALETTE, PALETTE_TYPE), ("width", pa.int32()), ("height", pa.int32()),
            ("embedded_at", pa.timestamp("us", tz="UTC")),
        ])  # fmt: skip

    def write(self, table: pa.Table, rejected: list[dict[str, str]], run: str) -> Commit:
        """Publishes a chunk's vectors (rows of `schema`) and rejected images; the commit file is written last."""
        name = part_name([*table["image_sha256"].to_pylist(), *(bytes.fromhex(r["sha256"]) for r in rejected)])
        digest, size = "", 0
        if len(table):
            sink = pa.BufferOutputStream()
            pq.write_table(table.cast(self.schema), sink, **PLAIN)
            data = sink.getvalue()
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
            storage.write_bytes(self._part_uri(name), data)
        commit = Commit(name, len(table), digest, size, run, rejected)
        storage.write_json(self._commit_uri(name), asdict(commit))
        return commit

    def committed(self, name: str) -> Commit | None:
        """The commit of a chunk, None if it is unfinished."""
        uri = self._commit_uri(name)
        return Commit(**storage.read_json(uri)) if storage.exists(uri) else None

    def commits(self) -> list[Commit]:
        """All commits, ordered by name."""
        uris = storage.list_files(storage.join(self.uri, "_commits"), ".json")
        with ThreadPoolExecutor(READERS) as pool:
            return [Commit(**record) for record in pool.map(storage.read_json, uris)]

    def commits_of(self, run: str) -> list[Commit]:
        """The commits of one run, ordered by name."""
        return [c for c in self.commits() if c.run == run]

    def part(self, commit: Commit, columns: list[str] | None = None) -> pa.Table:
        """Rows of a part. Raises VitrineError when its checksum differs from the commit's.

        Reading vectors checks the whole file's sha256; reading other columns only its size, and touches only their bytes.
        """
        uri = self._part_uri(commit.name)
        again = f"delete {self._commit_uri(commit.name)} to embed its images again"
        found = storage.size(uri) if storage.exists(uri) else None
        if found != commit.bytes:
            raise VitrineError(
                f"{uri}: {found if found is not None else 'no'} bytes where {commit.bytes} were committed; {again}"
            )
        if columns is not None and "vector" not in columns:
            try:
                return storage.read_table(uri, columns)
            except (OSError, pa.ArrowInvalid) as error:
                raise VitrineError(f"{uri}: the file is corrupt ({error_line(error)}); {again}") from None
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() != commit.sha256:
            raise VitrineError(f"{uri}: its sha256 is not {commit.sha256[:12]}…, the committed one: the file is corrupt; {again}")
        return pq.read_table(pa.BufferReader(data), columns=columns)

    def checksums(self, commits: Sequence[Commit] | None = None) -> pa.Array:
        """The sha256 of all embedded images, in the order of the commits (default: all)."""
        chosen = [c for c in (self.commits() if commits is None else commits) if c.rows]
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(lambda c: self.part(c, ["image_sha256"])["image_sha256"].combine_chunks(), chosen))
        return pa.concat_arrays(parts) if parts else pa.array([], SHA_TYPE)

    def gather(self, wanted: pa.Array, commits: Sequence[Commit] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, dim) float16 and palettes (n, 13) uint8 of the images `wanted` (n,), in order.

        A palette is all zeros where the part is of a time before palettes. Raises KeyError for an image that is not there.
        """
        found = np.zeros((len(wanted), self.dim), np.float16)
        palettes = np.zeros((len(wanted), PALETTE_TYPE.byte_width), np.uint8)
        missing = np.ones(len(wanted), bool)
        places = _ChecksumIndex(wanted)
        full = [c for c in (self.commits() if commits is None else commits) if c.rows]
        for table in _ahead(self.part, full):
            rows, where = places.of(table["image_sha256"])
            if len(rows):
                column = table["vector"].combine_chunks()
                matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), self.dim)
                found[where] = matrix[rows]
                missing[where] = False
                if PALETTE in table.column_names:
                    palettes[where] = fixed_bytes(table[PALETTE])[rows]
        if missing.any():
            raise KeyError(f"image {wanted[int(np.flatnonzero(missing)[0])].as_py().hex()} has no vector in {self.uri}")
        return found, palettes

    def _part_uri(self, name: str) -> str:
        return storage.join(self.uri, f"{name}.parquet")

    def _commit_uri(self, name: str) -> str:
        return storage.join(self.uri, "_commits", f"{name}.json")


def encoder_store(store_uri: str, name: str, version: str, fingerprint: str, dim: int) -> EmbeddingStore:
    """The store of an encoder version; `fingerprint` is its document tower's."""
    return EmbeddingStore(storage.join(store_uri, "embeddings", name, f"v{version}-{fingerprint[:12]}"), dim)


def part_name(members: Iterable[bytes]) -> str:
    """The part name of a chunk of these images, independent of their order."""
    return f"part-{hashlib.sha256(b''.join(sorted(members))).hexdigest()[:20]}"


def parts_sha256(commits: Iterable[Commit]) -> str:
    """One sha256 over the parts of these commits, independent of their order."""
    return hashlib.sha256("".join(sorted(f"{c.name} {c.sha256}\n" for c in commits if c.rows)).encode()).hexdigest()


def rejected_images(commits: Iterable[Commit], lasting: bool = False) -> dict[bytes, dict[str, str]]:
    """Rejected images by sha256; with `lasting`, only those rejected for their content."""
    rows = (r for c in commits for r in c.rejected)
    return {bytes.fromhex(r["sha256"]): r for r in rows if not lasting or r["reason"] in LASTING}


def _ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Maps `work` over items in order with AHEAD items in flight in threads, so memory stays bounded."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        rest = iter(items)
        waiting.extend(pool.submit(work, item) for item in islice(rest, AHEAD))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield done


class _ChecksumIndex:
    """Hash join of checksums (with repeats): matches on the first 8 bytes, sorted, then compares whole values."""

    def __init__(self, wanted: pa.Array) -> None:
        self.bytes = fixed_bytes(pa.chunked_array([wanted]))
        words = _words(self.bytes)
        self.order = np.argsort(words, kind="stable")
        self.sorted = words[self.order]

    def of(self, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the column, positions in the wanted list) of all matches."""
        candidates = fixed_bytes(column)
        words = _words(candidates)
        first = np.searchsorted(self.sorted, words, "left")
        counts = np.searchsorted(self.sorted, words, "right") - first
        rows = np.repeat(np.arange(len(words)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self.order[np.repeat(first, counts) + offsets]
        same = (candidates[rows] == self.bytes[places]).all(axis=1)
        return rows[same], places[same]


def _words(checksums: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(checksums[:, :8]).view(np.uint64).ravel()
