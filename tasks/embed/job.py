"""The embedding job: every picture of a snapshot to a vector, each image once per encoder version, and the vectors by shard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.encoder import EncoderFolder
from serving.contract.keys import shard_of
from tasks import storage
from tasks.catalog.snapshot import Snapshot, product_table
from tasks.embed import worker
from tasks.embed.spark import for_each_chunk, session
from tasks.embed.store import SHA_TYPE, EmbeddingStore
from tasks.errors import VitrineError
from tasks.progress import Progress

LOOK_CHUNK = 20_000
MANIFEST = "_manifest.json"


@dataclass(frozen=True)
class EmbedConfig:
    """How the job runs; none of it changes a vector, except `batch`, which is part of how an encoder version is run."""

    spark_master: str = "local[2]"
    shards: int = 2
    chunk: int = 512
    """Images per chunk: what a lost worker costs, and one part file."""
    batch: int = 32
    threads: int = 1
    """ONNX Runtime threads per worker."""
    decoders: int = 2
    """Threads that read and decode ahead of the encoder, per worker."""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """What became of every product's picture: catalogue == embedded + quarantined, always."""

    run_key: str
    vectors_uri: str
    store_uri: str
    quarantine_uri: str
    dim: int
    shards: int
    catalogue: int
    embedded: int
    quarantined: int
    embedded_now: int
    reused: int
    reasons: dict[str, int]


def embed_snapshot(
    snapshot: Snapshot, encoder_folder: Path, encoder_version: str, store_uri: str, run_key: str, work: Path, config: EmbedConfig
) -> Embedded:
    """Embeds what the store lacks and writes `vectors/<run_key>/shard=<i>/`: key, image_sha256, vector, sorted by key.

    A run that was killed goes on where it was; a run that was finished is returned as it is. Raises VitrineError when the
    figures do not add up.
    """
    vectors_uri = storage.join(store_uri, "vectors", run_key)
    if storage.exists(storage.join(vectors_uri, MANIFEST)):
        return Embedded(**storage.read_json(storage.join(vectors_uri, MANIFEST)))
    encoder = EncoderFolder(encoder_folder).manifest
    print_ = encoder.variant(encoder.document).fingerprint
    store = EmbeddingStore(storage.join(store_uri, "embeddings", encoder.name, f"v{encoder_version}-{print_[:12]}"), encoder.dim)
    before = store.known()
    tally = work / "tally"
    tally.mkdir(parents=True, exist_ok=True)
    settings = worker.WorkerConfig(
        snapshot.image_root, config.hosts, str(encoder_folder), encoder.document, store.uri, encoder.dim, run_key,
        config.batch, config.threads, config.decoders, str(tally),
    )  # fmt: skip
    chunks = storage.join(store_uri, "work", run_key)
    with session(config.spark_master, work) as spark:
        looks_uri = storage.join(store_uri, "looks")
        looked = _look(spark, snapshot, chunks, looks_uri, settings)
        todo = _todo(looked, store)
        names = _write_chunks(todo, storage.join(chunks, "embed"), _chunk_rows(len(todo), config))
        with _watched(tally, len(todo)):
            for_each_chunk(spark, names, partial(_embed, config=settings))
    result = _publish(snapshot, store, looked, vectors_uri, store_uri, run_key, before, config)
    _remember(looked, looks_uri, run_key)
    storage.write_json(storage.join(vectors_uri, MANIFEST), result.__dict__)
    return result


def _embed(chunk: str, config: worker.WorkerConfig) -> None:
    worker.embed(chunk, config)


def _look_chunk(chunk: str, config: worker.WorkerConfig) -> None:
    worker.look(chunk, chunk.replace("/look-", "/looked-"), config)


def _look(spark, snapshot: Snapshot, chunks: str, looks_uri: str, settings: worker.WorkerConfig) -> pa.Table:  # type: ignore[no-untyped-def]
    """LOOKED rows of all products: what each picture's sha256 is, or why it has none."""
    products = product_table(snapshot.uri, ["key", "image_uri"])
    known = _known_looks(looks_uri)
    places = pc.index_in(products["image_uri"], known["image_uri"])
    for column in ("size", "mtime_ns", "sha256"):
        products = products.append_column(f"known_{column}", known[column].take(places))
    names = _write_chunks(products, storage.join(chunks, "look"), LOOK_CHUNK, "look")
    outs = [n.replace("/look-", "/looked-") for n in names]
    waiting = [n for n, o in zip(names, outs, strict=True) if not storage.exists(o)]
    with Progress("look at pictures", len(products), "pictures") as progress:
        for_each_chunk(spark, waiting, partial(_look_chunk, config=settings))
        progress.set(len(products))
    return pa.concat_tables([read_table(o) for o in outs])


def _todo(looked: pa.Table, store: EmbeddingStore) -> pa.Table:
    """(image_sha256, image_uri) of the images that the store neither holds nor has rejected, each once, in order of sha256."""
    readable = looked.filter(pc.is_valid(looked["sha256"])).select(["sha256", "image_uri"])
    each = readable.group_by("sha256", use_threads=False).aggregate([("image_uri", "first")])
    rejected = pa.array([bytes.fromhex(s) for s in store.rejected()], SHA_TYPE)
    done = pa.concat_arrays([store.known(), rejected])
    new = each.filter(pc.invert(pc.is_in(each["sha256"], done))).sort_by("sha256")
    return pa.table({"image_sha256": new["sha256"], "image_uri": new["image_uri_first"]})


def _chunk_rows(images: int, config: EmbedConfig) -> int:
    """Rows a chunk: small jobs are cut finer, so that every core has work; never below one batch."""
    cores = max(int("".join(c for c in config.spark_master.partition("[")[2] if c.isdigit()) or 4), 1)
    return max(config.batch, min(config.chunk, -(-images // (2 * cores))))


def _write_chunks(table: pa.Table, uri: str, rows: int, name: str = "chunk") -> list[str]:
    names = []
    for number, start in enumerate(range(0, len(table), rows)):
        names.append(storage.join(uri, f"{name}-{number:06d}.parquet"))
        with storage.writer(names[-1]) as stream:
            pq.write_table(table.slice(start, rows), stream)
    return names


def _publish(
    snapshot: Snapshot, store: EmbeddingStore, looked: pa.Table, vectors_uri: str, store_uri: str, run_key: str, before: pa.Array,
    config: EmbedConfig,
) -> Embedded:  # fmt: skip
    """Writes the shards' vectors and the quarantine, and counts where every product went."""
    rejected = store.rejected()
    reasons = looked["reason"].to_pylist()
    details = looked["detail"].to_pylist()
    shas = looked["sha256"].to_pylist()
    for row, sha in enumerate(shas):
        if sha is not None and sha.hex() in rejected:
            reasons[row], details[row] = rejected[sha.hex()]["reason"], rejected[sha.hex()]["detail"]
    bad = np.array([r is not None for r in reasons], bool)
    quarantine = pa.table({
        "key": looked["key"].filter(bad), "image_uri": looked["image_uri"].filter(bad),
        "reason": pa.array([r for r in reasons if r], pa.string()),
        "detail": pa.array([d for r, d in zip(reasons, details, strict=True) if r], pa.string()),
        "run": pa.array([run_key] * int(bad.sum()), pa.string()),
    })  # fmt: skip
    quarantine_uri = storage.join(store_uri, "quarantine", f"{run_key}.parquet")
    with storage.writer(quarantine_uri) as stream:
        pq.write_table(quarantine, stream)
    usable = looked.filter(~bad).sort_by("key")
    shards = shard_of(usable["key"].to_numpy(), config.shards)
    for shard in range(config.shards):
        _write_shard(usable.filter(shards == shard), store, storage.join(vectors_uri, f"shard={shard}", "part-00000.parquet"))
    reused = pc.is_in(usable["sha256"], before)
    new_images = len(pc.unique(usable["sha256"].filter(pc.invert(reused))))
    if len(usable) + len(quarantine) != snapshot.rows:
        raise VitrineError(f"{snapshot.rows} products, but {len(usable)} embedded and {len(quarantine)} in quarantine")
    counts: dict[str, int] = {}
    for reason in quarantine["reason"].to_pylist():
        counts[reason] = counts.get(reason, 0) + 1
    return Embedded(
        run_key, vectors_uri, store.uri, quarantine_uri, store.dim, config.shards, snapshot.rows, len(usable), len(quarantine),
        new_images, pc.sum(reused).as_py() or 0, counts,
    )  # fmt: skip


def _write_shard(rows: pa.Table, store: EmbeddingStore, uri: str) -> None:
    matrix = store.vectors(rows["sha256"].combine_chunks())
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), store.dim)
    table = pa.table({"key": rows["key"], "image_sha256": rows["sha256"], "vector": lists})
    with storage.writer(uri) as stream:
        pq.write_table(table, stream, compression="none")


def _known_looks(uri: str) -> pa.Table:
    """The newest look at each uri: image_uri, size, mtime_ns, sha256."""
    schema = pa.schema([f for f in worker.LOOKED if f.name in ("image_uri", "size", "mtime_ns", "sha256")])
    files = storage.listing(uri, ".parquet")
    if not files:
        return schema.empty_table()
    table = pa.concat_tables([read_table(f).select(schema.names) for f in files])
    newest = table.group_by("image_uri", use_threads=False).aggregate([(n, "last") for n in schema.names[1:]])
    return newest.rename_columns([n.removesuffix("_last") for n in newest.column_names]).select(schema.names)


def _remember(looked: pa.Table, uri: str, run_key: str) -> None:
    """Keeps the looks at local pictures for the next run; the file replaces all older ones, whose looks it includes."""
    good = looked.filter(pc.and_(pc.is_valid(looked["sha256"]), pc.greater_equal(looked["size"], 0)))
    before = storage.listing(uri, ".parquet")
    old = _known_looks(uri)
    kept = old.filter(pc.invert(pc.is_in(old["image_uri"], good["image_uri"])))
    merged = pa.concat_tables([kept, good.select(kept.column_names)])
    name = storage.join(uri, f"looks-{run_key}.parquet")
    with storage.writer(name) as stream:
        pq.write_table(merged, stream)
    for file in before:
        if file != name:
            storage.delete(file)


def read_table(uri: str) -> pa.Table:
    fs, path = storage.filesystem(uri)
    return pq.read_table(path, filesystem=fs)


@contextmanager
def _watched(tally: Path, total: int) -> Iterator[None]:
    """Shows progress while the workers' tallies grow."""
    for leftover in tally.iterdir():
        leftover.unlink()
    stop = threading.Event()
    with Progress("embed pictures", total, "pictures") as progress:

        def watch() -> None:
            while not stop.wait(0.5):
                progress.set(min(sum(f.stat().st_size for f in tally.iterdir()), total))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        progress.set(total)
