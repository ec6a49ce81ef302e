"""The work of one Spark worker on one chunk. Independent of Spark: chunks are read from and written to files."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.encoder import Encoder, EncoderFolder
from serving.contract.image_header import open_image
from serving.contract.palette import PALETTE, PALETTE_TYPE, palette
from serving.contract.preprocess import DEFAULT_LIMITS, ImageRejected, PreprocessSpec, decode
from serving.search.image_fetch import Fetcher
from tasks import storage
from tasks.embed.chunk_progress import REJECTED
from tasks.embed.images import read_image, validator
from tasks.embed.spark import sent_folder
from tasks.embed.store import SHA_TYPE, EmbeddingStore, part_name, vector_column
from tasks.encoder.export.runtimes import runtime

HASHED = pa.schema([
    ("key", pa.int64()), ("position", pa.int16()), ("image_uri", pa.string()), ("stamp", pa.string()), ("sha256", SHA_TYPE),
    ("reason", pa.string()), ("detail", pa.string()),
])  # fmt: skip
HASH_THREADS = 16
"""Looking waits for disks and networks, not for the processor."""
AHEAD = 2
"""Batches decoded ahead of the encoder, so that neither waits and memory stays bounded."""


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of a worker."""

    image_root: str
    web: Fetcher
    encoder_folder: str
    document: str
    store_uri: str
    dim: int
    run: str
    batch: int
    threads: int
    decoders: int
    progress_dir: str
    runtime: str = "onnxruntime"


@dataclass(frozen=True)
class Picture:
    """A decoded picture: pixels (size, size, 3) uint8, palette (13,) uint8, and its original width and height."""

    pixels: np.ndarray
    palette: np.ndarray
    width: int
    height: int


def hash_chunk(chunk: str, out: str, config: WorkerConfig) -> None:
    """Computes each picture's sha256; a picture whose validator equals the cached one is not read.

    Chunk: key, position, image_uri, known_stamp, known_sha256. Writes LOOKED rows; an unreadable picture has a reason.
    """
    table = storage.read_table(chunk)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        rows = list(pool.map(lambda row: _hash_row(row, config), table.to_pylist()))
    with storage.writer(out) as stream:
        pq.write_table(pa.Table.from_pylist(rows, HASHED), stream)


def _hash_row(row: dict, config: WorkerConfig) -> dict:
    uri = row["image_uri"] or ""
    found = {n: row[n] for n in ("key", "position")} | {
        "image_uri": uri,
        "stamp": None,
        "sha256": None,
        "reason": None,
        "detail": None,
    }
    try:
        if not uri:
            raise ImageRejected("missing", "the product has no picture")
        found["stamp"] = validator(uri, config.image_root, config.web)
        if found["stamp"] is not None and found["stamp"] == row["known_stamp"]:
            return found | {"sha256": row["known_sha256"]}
        return found | {"sha256": hashlib.sha256(read_image(uri, config.image_root, config.web)).digest()}
    except ImageRejected as error:
        return found | {"reason": error.reason, "detail": str(error)}


def embed_chunk(chunk: str, config: WorkerConfig) -> None:
    """Embeds a chunk (image_sha256, image_uri) and commits its vectors and its rejected pictures with reasons.

    A chunk that this run has committed before is left as it is.
    """
    rows = storage.read_table(chunk).to_pylist()
    store = EmbeddingStore(config.store_uri, config.dim)
    before = store.committed(part_name(r["image_sha256"] for r in rows))
    if before is not None and before.run == config.run:
        return
    encoder = _encoder(config)
    spec = _folder(config).manifest.preprocess
    good: list[tuple[bytes, bytes, int, int]] = []
    vectors: list[np.ndarray] = [np.zeros((0, config.dim), np.float16)]
    rejected: list[dict[str, str]] = []
    with ThreadPoolExecutor(config.decoders) as pool:
        for batch, jobs in _decoded(pool, rows, spec, config):
            # Always a full batch: a vector must not depend on how many neighbours its picture had.
            pixels = np.zeros((config.batch, spec.size, spec.size, 3), np.uint8)
            filled = 0
            for row, job in zip(batch, jobs, strict=True):
                try:
                    picture = job.result()
                except ImageRejected as error:
                    detail = {"sha256": row["image_sha256"].hex(), "image_uri": row["image_uri"]}
                    rejected.append(detail | {"reason": error.reason, "detail": str(error)})
                    continue
                pixels[filled] = picture.pixels
                filled += 1
                good.append((row["image_sha256"], picture.palette.tobytes(), picture.width, picture.height))
            if filled:
                vectors.append(encoder.encode(pixels)[:filled].astype(np.float16))
            _report_progress(chunk, len(batch), len(rejected), config)
    store.write(_table(good, np.concatenate(vectors), store.schema), rejected, config.run)


Decoded = tuple[list[dict], list["Future[Picture]"]]


def _decoded(pool: ThreadPoolExecutor, rows: list[dict], spec: PreprocessSpec, config: WorkerConfig) -> Iterator[Decoded]:
    """Batches of rows with futures of their pictures; AHEAD batches are decoded while one is encoded."""
    waiting: deque[Decoded] = deque()
    for start in range(0, len(rows), config.batch):
        batch = rows[start : start + config.batch]
        waiting.append((batch, [pool.submit(_picture, row, spec, config) for row in batch]))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _picture(row: dict, spec: PreprocessSpec, config: WorkerConfig) -> Picture:
    data = read_image(row["image_uri"], config.image_root, config.web)
    if hashlib.sha256(data).digest() != row["image_sha256"]:
        raise ImageRejected("changed", f"{row['image_uri']}: its bytes changed while the job ran; the next run takes it")
    try:
        pixels = decode(data, spec)
        return Picture(pixels, palette(pixels), *open_image(data, DEFAULT_LIMITS).size)
    except ImageRejected:
        raise
    except Exception as error:  # a decoder's own fault: the picture is named and tried again next run, the job goes on
        raise ImageRejected("undecodable", f"{row['image_uri']}: {type(error).__name__}: {error}") from None


def _table(good: list[tuple[bytes, bytes, int, int]], matrix: np.ndarray, schema: pa.Schema) -> pa.Table:
    now = pa.array([datetime.now(UTC)] * len(good), schema.field("embedded_at").type)
    return pa.table({
        "image_sha256": pa.array([g[0] for g in good], SHA_TYPE), "vector": vector_column(matrix),
        PALETTE: pa.array([g[1] for g in good], PALETTE_TYPE), "width": pa.array([g[2] for g in good], pa.int32()),
        "height": pa.array([g[3] for g in good], pa.int32()), "embedded_at": now,
    }, schema)  # fmt: skip


_FOLDERS: dict[str, EncoderFolder] = {}
_ENCODERS: dict[tuple[str, str, str], Encoder] = {}


def _folder(config: WorkerConfig) -> EncoderFolder:
    if config.encoder_folder not in _FOLDERS:
        _FOLDERS[config.encoder_folder] = EncoderFolder(sent_folder(config.encoder_folder))
    return _FOLDERS[config.encoder_folder]


def _encoder(config: WorkerConfig) -> Encoder:
    """This process's encoder session, opened and verified once."""
    key = (config.encoder_folder, config.document, config.runtime)
    if key not in _ENCODERS:
        _ENCODERS[key] = _folder(config).open(config.document, config.threads, runtime(config.runtime))
    return _ENCODERS[key]


def _report_progress(chunk: str, count: int, rejected: int, config: WorkerConfig) -> None:
    """Tells the driver how far this chunk is, and how many of it were rejected, where both see the same folder."""
    if config.progress_dir and os.path.isdir(config.progress_dir):
        place = Path(config.progress_dir, Path(chunk).stem)
        with place.open("ab") as stream:
            stream.write(b"." * count)
        if rejected:
            place.with_suffix(REJECTED).write_bytes(b"." * rejected)
