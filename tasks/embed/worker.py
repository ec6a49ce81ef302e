"""What one Spark worker does with one chunk. Nothing here knows of Spark: chunks come as files and go as files."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.encoder import EncoderFolder, OnnxEncoder
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks import storage
from tasks.embed.images import read_image, resolve
from tasks.embed.store import SHA_TYPE, EmbeddingStore

LOOKED = pa.schema([
    ("key", pa.int64()), ("image_uri", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", SHA_TYPE),
    ("reason", pa.string()), ("detail", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told besides its chunk."""

    image_root: str
    hosts: tuple[str, ...]
    encoder_folder: str
    document: str
    store_uri: str
    dim: int
    run: str
    batch: int
    threads: int
    decoders: int
    tally: str


def look(chunk: str, out: str, config: WorkerConfig) -> None:
    """Finds each picture's sha256: without reading it when its size and time are those of the last look.

    Chunk: key, image_uri, known_size, known_mtime_ns, known_sha256. Writes LOOKED rows; an unreadable picture has a reason.
    """
    table = _read(chunk)
    with ThreadPoolExecutor(config.decoders) as pool:
        rows = list(pool.map(lambda row: _look(row, config), table.to_pylist()))
    with storage.writer(out) as stream:
        pq.write_table(pa.Table.from_pylist(rows, LOOKED), stream)


def _look(row: dict, config: WorkerConfig) -> dict:
    uri = row["image_uri"]
    found = {"key": row["key"], "image_uri": uri, "size": -1, "mtime_ns": -1, "sha256": None, "reason": None, "detail": None}
    try:
        stamp = _stamp(uri, config.image_root)
        if stamp is not None:
            found["size"], found["mtime_ns"] = stamp
            if row["known_sha256"] is not None and stamp == (row["known_size"], row["known_mtime_ns"]):
                return found | {"sha256": row["known_sha256"]}
        data = read_image(uri, config.image_root, config.hosts)
        return found | {"sha256": hashlib.sha256(data).digest()}
    except ImageRejected as error:
        return found | {"reason": error.reason, "detail": str(error)}


def _stamp(uri: str, root: str) -> tuple[int, int] | None:
    """(bytes, modification time in ns) of a local picture; None where only reading tells."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    if root.startswith("s3://"):
        return None
    try:
        status = resolve(uri, root).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def embed(chunk: str, config: WorkerConfig) -> None:
    """Embeds a chunk (image_sha256, image_uri) and commits it: its vectors, and its rejected pictures with their reasons."""
    table = _read(chunk)
    encoder = _encoder(config)
    spec = _folder(config).manifest.preprocess
    good: list[tuple[bytes, int, int]] = []
    vectors: list[np.ndarray] = []
    rejected: list[dict[str, str]] = []
    with ThreadPoolExecutor(config.decoders) as pool:
        # Decoding runs ahead of the encoder by at most two batches, so a chunk of any length stays in bounded memory.
        for rows in _batches(table.to_pylist(), config.batch):
            waiting = [pool.submit(_pixels, r, spec, config) for r in rows]
            pixels = np.zeros((config.batch, spec.size, spec.size, 3), np.uint8)
            members: list[tuple[bytes, int, int]] = []
            for row, job in zip(rows, waiting, strict=True):
                try:
                    pixels[len(members)] = job.result()
                    members.append((row["image_sha256"], spec.size, spec.size))
                except ImageRejected as error:
                    detail = {"sha256": row["image_sha256"].hex(), "image_uri": row["image_uri"]}
                    rejected.append(detail | {"reason": error.reason, "detail": str(error)})
            if members:
                # Always a full batch: a vector must not depend on how many neighbours its picture had.
                vectors.append(encoder.encode(pixels)[: len(members)].astype(np.float16))
                good += members
            _tally(chunk, len(rows), config)
    store = EmbeddingStore(config.store_uri, config.dim)
    matrix = np.concatenate(vectors) if vectors else np.zeros((0, config.dim), np.float16)
    store.write(_rows(good, matrix, store.schema), rejected, config.run)


def _rows(good: list[tuple[bytes, int, int]], matrix: np.ndarray, schema: pa.Schema) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    now = pa.array([datetime.now(UTC)] * len(good), schema.field("embedded_at").type)
    return pa.table({
        "image_sha256": pa.array([g[0] for g in good], SHA_TYPE), "vector": lists,
        "width": pa.array([g[1] for g in good], pa.int32()), "height": pa.array([g[2] for g in good], pa.int32()),
        "embedded_at": now,
    })  # fmt: skip


def _pixels(row: dict, spec: PreprocessSpec, config: WorkerConfig) -> np.ndarray:
    data = read_image(row["image_uri"], config.image_root, config.hosts)
    if hashlib.sha256(data).digest() != row["image_sha256"]:
        raise ImageRejected("changed", f"{row['image_uri']}: its bytes changed while the job ran; the next run takes it")
    return decode(data, spec)


def _batches(rows: list[dict], size: int) -> Iterator[list[dict]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _read(uri: str) -> pa.Table:
    fs, path = storage.filesystem(uri)
    return pq.read_table(path, filesystem=fs)


_FOLDERS: dict[str, EncoderFolder] = {}
_ENCODERS: dict[tuple[str, str], OnnxEncoder] = {}


def _folder(config: WorkerConfig) -> EncoderFolder:
    if config.encoder_folder not in _FOLDERS:
        _FOLDERS[config.encoder_folder] = EncoderFolder(Path(config.encoder_folder))
    return _FOLDERS[config.encoder_folder]


def _encoder(config: WorkerConfig) -> OnnxEncoder:
    """This process's encoder session: opened and verified once, kept between chunks and jobs."""
    key = (config.encoder_folder, config.document)
    if key not in _ENCODERS:
        _ENCODERS[key] = _folder(config).open(config.document, config.threads)
    return _ENCODERS[key]


def _tally(chunk: str, count: int, config: WorkerConfig) -> None:
    """Tells the driver how far this chunk is, where both see the same folder."""
    if config.tally and os.path.isdir(config.tally):
        with Path(config.tally, Path(chunk).stem).open("ab") as stream:
            stream.write(b"." * count)
