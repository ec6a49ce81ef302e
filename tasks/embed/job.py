"""The embedding job: embeds each image of a snapshot once per encoder version, and writes the vectors by shard."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.encoder import EncoderFolder
from serving.contract.manifest import EncoderManifest
from serving.contract.provenance import EmbeddingCommit
from serving.contract.segments import POSITION
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed import worker
from tasks.embed.chunk_progress import Report, no_report, show_progress
from tasks.embed.chunks import chunks_to_embed
from tasks.embed.image_hash_cache import HASH_CACHE, hash_images, update_cache
from tasks.embed.images import fetcher
from tasks.embed.quarantine import SCHEMA as QUARANTINE
from tasks.embed.quarantine import quarantine_rows, quarantine_uri, sample_reasons
from tasks.embed.shard_vectors import distinct_pictures, write_shards
from tasks.embed.spark import for_each_chunk, send_folder, session
from tasks.embed.store import EmbeddingStore, encoder_store, parts_sha256, rejected_images
from tasks.embed.titles import with_titles
from tasks.errors import VitrineError
from tasks.records import Record

log = logging.getLogger(__name__)

MANIFEST = "_manifest.json"

BATCH = {"cpu": 32, "gpu": 512}
"""On two cores batches of 8 and 32 differ by a tenth or two, small networks liking the larger (measured: docs/benchmarks.md); a GPU
needs hundreds (the document's figure; not measured)."""
ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")


@dataclass(frozen=True)
class EmbedConfig:
    """Configuration of the job. Only `batch` may affect vectors: it is part of how an encoder version is run."""

    spark_master: str = "local[2]"
    shards: int = 2
    chunk: int = 2048
    """Most images per chunk: what a lost worker costs, and one part file."""
    batch: int = 0
    """Pictures per run of the encoder. 0: what its device runs fastest (BATCH)."""
    threads: int = 1
    """Encoder threads per worker; Spark runs one worker per core."""
    runtime: str = "onnxruntime"
    """What runs the documents' encoder: a runtime of serving, or torch (on the GPU where there is one)."""
    decoders: int = 2
    """Threads that read and decode ahead of the encoder, per worker."""
    hosts: tuple[str, ...] = ()
    """Hosts that pictures may be fetched from."""
    private_hosts: bool = False
    """Whether these may lie in a private network, and speak http."""
    fetch_s: float = 10.0
    """Most a picture may take to come."""
    gpus: float = 0.0
    """GPUs that a task asks of a Spark cluster, by stage: 1 its own, 0.5 one for two tasks. local[n] hands out none."""
    spark: tuple[tuple[str, str], ...] = ()
    """Further Spark settings, as pairs."""
    direct: int = 0
    """Up to so many pictures are embedded by this process itself, through the same worker, instead of waiting for Spark."""
    hash_cache: bool = True
    """Whether to use the hash cache; reading a few changed products is faster than reading the cache."""
    text_only: bool = False
    """Whether products that name no picture are embedded by their titles (tasks/embed/titles.py)."""

    @property
    def batch_rows(self) -> int:
        """Pictures per run of the encoder."""
        return self.batch or BATCH["gpu" if self.gpus or self.runtime in ON_GPU else "cpu"]


@dataclass(frozen=True)
class EmbedResult(Record):
    """Outcome of an embedding run. Of products catalogue == embedded + quarantined, always; and of pictures
    catalogue_pictures == pictures + quarantined_pictures + duplicate_pictures.

    A product with a usable picture is embedded. `embedded_now` counts images that this run embedded, `reused` products all of whose
    usable pictures another run had embedded.
    """

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
    named: list[str] = field(default_factory=list)
    """The first few products in quarantine with their reasons."""
    parts_sha256: str = ""
    """sha256 over the parts of the store that the vectors were gathered from; "" in records of before."""
    pictures: int = 0
    """Rows of the shard vectors; 0 in records of before, which have one for each embedded product."""
    quarantined_pictures: int = 0
    """Pictures that cannot be used, those of products in quarantine included."""
    duplicate_pictures: int = 0
    """Usable pictures with the content of an earlier one of the same product."""
    picture_reasons: dict[str, int] = field(default_factory=dict)
    """Why pictures of embedded products cannot be used."""
    titles: int = 0
    """Embedded products without a picture, by their titles: the one of each counts among `pictures`."""

    @classmethod
    def all_embedded(cls, run_key: str, products: int) -> "EmbedResult":
        """The counts of a run that embedded each of its products, where its own record is not at hand; it names no vectors."""
        return cls(
            run_key=run_key, vectors_uri="", store_uri="", quarantine_uri="", dim=0, shards=0, catalogue=products, embedded=products,
            quarantined=0, embedded_now=0, reused=0, reasons={},
        )  # fmt: skip

    @property
    def catalogue_pictures(self) -> int:
        """Pictures of the snapshot."""
        return self.pictures + self.quarantined_pictures + self.duplicate_pictures

    @property
    def summary(self) -> str:
        """All counts in one line."""
        why = "".join(f", {count} {reason}" for reason, count in self.reasons.items())
        named = self.named and f"; in quarantine: {', '.join(self.named)}"
        if self.catalogue_pictures > self.catalogue:
            named = f"; {self.picture_summary}{named or ''}"
        if self.titles:
            named = f"; {self.titles} products have no picture and are embedded by their titles{named or ''}"
        return (
            f"{self.catalogue} products = {self.embedded} embedded + {self.quarantined} in quarantine{why and f' ({why[2:]})'}; "
            f"{self.embedded_now} pictures embedded now, {self.reused} products reused{named or ''}"
        )

    @property
    def picture_summary(self) -> str:
        """Counts of pictures in one line."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.picture_reasons.items())
        return (
            f"{self.catalogue_pictures} pictures = {self.pictures} usable + {self.quarantined_pictures} in quarantine + "
            f"{self.duplicate_pictures} doubled" + (f"; of embedded products {why}" if why else "")
        )

    def note(self, products: str = "products") -> str:
        """Quarantined products with the first few ids and reasons, and pictures of others that cannot be used; "" for none."""
        others, are = sum(self.picture_reasons.values()), "is" if self.quarantined == 1 else "are"
        what = f"{self.quarantined} of {self.catalogue} {products} {are} in quarantine: {', '.join(self.named)}"
        notes = [f"{what}; the release board lists them"] if self.quarantined else []
        notes += [f"{others} pictures cannot be used, of products that have another one"] if others else []
        return "; ".join(notes)


def embed_snapshot(
    snapshot: Snapshot, encoder_folder: Path, encoder_version: str, store_uri: str, run_key: str, work: Path, config: EmbedConfig,
    report: Report = no_report,
) -> EmbedResult:  # fmt: skip
    """Embeds what the store lacks and writes `vectors/<run_key>/shard=<i>/`: key, image_sha256, vector and, of several pictures a
    product, position; sorted by key and position. Of two equal pictures of one product only the first is there.

    A run that was killed goes on where it was and ends with the same vectors; a run that was finished is returned as it is.
    Spark starts only when there is something for it to do. `report` is told of the pictures done, now and then. Raises VitrineError
    when the figures do not add up.
    """
    vectors_uri = storage.join(store_uri, "vectors", run_key)
    if storage.exists(storage.join(vectors_uri, MANIFEST)):
        return EmbedResult.from_json(storage.read_json(storage.join(vectors_uri, MANIFEST)))
    encoder = EncoderFolder(encoder_folder).manifest
    print_ = encoder.variant(encoder.document).fingerprint
    store = encoder_store(store_uri, encoder.name, encoder_version, print_, encoder.dim)
    progress_dir = work / "tally"
    progress_dir.mkdir(parents=True, exist_ok=True)
    settings = worker_config(snapshot, encoder_folder, encoder, store.uri, run_key, str(progress_dir), config)
    chunks_uri = storage.join(store_uri, "work", run_key)
    cache_uri = storage.join(store_uri if config.hash_cache else chunks_uri, HASH_CACHE)
    with ExitStack() as stack:
        spark = cache(lambda: stack.enter_context(session(config.spark_master, work, dict(config.spark), config.gpus)))

        def hash_each(chunks: list[str], look: Callable[[str], None]) -> None:
            if len(chunks) == 1:  # hashing one chunk here is faster than starting Spark
                look(chunks[0])
            elif chunks:
                for_each_chunk(spark(), chunks, look)

        hashed = hash_images(snapshot, chunks_uri, cache_uri, settings, hash_each)
        names, images = chunks_to_embed(hashed, store, storage.join(chunks_uri, "embed"), config)
        if names:
            with show_progress(
                "embed pictures", progress_dir, images, "pictures", partial(_count_stored, store, run_key), report
            ):
                if images <= config.direct:
                    for name in names:
                        worker.embed_chunk(name, settings)
                else:
                    sent = replace(settings, encoder_folder=send_folder(spark(), encoder_folder, work))
                    for_each_chunk(spark(), names, partial(worker.embed_chunk, config=sent), config.gpus)
    if config.text_only:
        hashed = with_titles(hashed, snapshot, EncoderFolder(encoder_folder), store, run_key)
    result = _publish(snapshot, store, hashed, vectors_uri, quarantine_uri(store_uri, run_key), run_key, config)
    update_cache(hashed, cache_uri, snapshot.image_root, run_key)
    storage.write_json(storage.join(vectors_uri, MANIFEST), result.to_json())
    for leftover in storage.list_files(chunks_uri, recursive=True):
        storage.delete(leftover)
    log.info("%s", result.summary)
    return result


def worker_config(
    snapshot: Snapshot, encoder_folder: Path, encoder: EncoderManifest, store_uri: str, run_key: str, progress_dir: str,
    config: EmbedConfig,
) -> worker.WorkerConfig:  # fmt: skip
    """What every worker of a job is told."""
    return worker.WorkerConfig(
        snapshot.image_root, fetcher(config.hosts, config.private_hosts, config.fetch_s), str(encoder_folder), encoder.document,
        store_uri, encoder.dim, run_key, config.batch_rows, config.threads, config.decoders, progress_dir, config.runtime,
    )  # fmt: skip


def embedding_commit(result: EmbedResult, fingerprint: str) -> EmbeddingCommit:
    """The name of a run's vectors for the manifest of an index version; `fingerprint` is the document encoder's.

    Its sha256 is that of the run's `_manifest.json`, which was written last and counts everything (see `EmbedResult`).
    """
    digest = hashlib.sha256(storage.read_bytes(storage.join(result.vectors_uri, MANIFEST))).hexdigest()
    return EmbeddingCommit(
        uri=result.vectors_uri, store=result.store_uri, sha256=digest, fingerprint=fingerprint, embedded=result.embedded,
        quarantined=result.quarantined,
    )  # fmt: skip


def _count_stored(store: EmbeddingStore, run_key: str) -> int:
    return sum(c.rows + len(c.rejected) for c in store.commits_of(run_key))


def _publish(
    snapshot: Snapshot, store: EmbeddingStore, hashed: pa.Table, vectors_uri: str, quarantine: str, run_key: str,
    config: EmbedConfig,
) -> EmbedResult:  # fmt: skip
    """Writes quarantine and shard vectors, and counts where every product and picture went."""
    commits = store.commits()
    readable = pc.is_in(hashed["sha256"], store.checksums(commits))  # a null sha256 is not in it
    good = hashed.filter(readable).select(["key", POSITION, "sha256"])
    usable = distinct_pictures(good)
    embedded = pc.unique(usable["key"])
    bad = quarantine_rows(hashed.filter(pc.invert(readable)), embedded, rejected_images(commits), snapshot.uri, run_key)
    with storage.writer(quarantine) as stream:
        pq.write_table(pa.Table.from_pylist(bad, QUARANTINE), stream)
    products = [row for row in bad if not (row["found"] or row[POSITION])]
    if len(embedded) + len(products) != snapshot.rows or len(good) + len(bad) != snapshot.pictures:
        raise VitrineError(
            f"{snapshot.rows} products with {snapshot.pictures} pictures, but {len(embedded)} embedded and {len(products)} in quarantine, "
            f"with {len(good)} and {len(bad)} pictures"
        )
    write_shards(usable, store, commits, vectors_uri, config.shards)
    here = store.checksums([c for c in commits if c.run == run_key])
    titles = usable.filter(pc.less(usable[POSITION], 0))  # no pictures: what a picture takes is measured without them
    pictures_now = len(here) - (pc.sum(pc.is_in(pc.unique(titles["sha256"]), here)).as_py() or 0)
    now = pc.unique(usable["key"].filter(pc.is_in(usable["sha256"], here)))
    reasons, others = Counter(row["reason"] for row in products), Counter(row["reason"] for row in bad if row["found"])
    return EmbedResult(
        run_key, vectors_uri, store.uri, quarantine, store.dim, config.shards, snapshot.rows, len(embedded), len(products),
        pictures_now, len(embedded) - len(now), dict(sorted(reasons.items())), sample_reasons(products), parts_sha256(commits),
        len(usable), len(bad), len(good) - len(usable), dict(sorted(others.items())),
        titles=len(titles),
    )  # fmt: skip
