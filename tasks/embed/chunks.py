"""Cuts what a run has to embed into chunks: once, so that a run that goes on after a kill meets the same ones."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.embed.image_hash_cache import URI
from tasks.embed.store import SHA_TYPE, EmbeddingStore, rejected_images

if TYPE_CHECKING:
    from tasks.embed.job import EmbedConfig

CHUNKS = "_chunks.json"


def chunks_to_embed(hashed: pa.Table, store: EmbeddingStore, uri: str, config: "EmbedConfig") -> tuple[list[str], int]:
    """The chunks (image_sha256, image_uri) left to embed, and their number of images.

    They are cut once per run: a run that goes on after a kill meets the same chunks, so its batches and vectors are the same.
    """
    listed = storage.join(uri, CHUNKS)
    if not storage.exists(listed):
        todo = images_to_embed(hashed, store)
        rows = chunk_rows(len(todo), config)
        chunks = []
        for number, start in enumerate(range(0, len(todo), rows)):
            name = storage.join(uri, f"chunk-{number:06d}.parquet")
            with storage.writer(name) as stream:
                pq.write_table(todo.slice(start, rows), stream)
            chunks.append({"name": name, "images": min(rows, len(todo) - start)})
        storage.write_json(listed, chunks)
    chunks = storage.read_json(listed)
    return [c["name"] for c in chunks], sum(c["images"] for c in chunks)


def images_to_embed(hashed: pa.Table, store: EmbeddingStore) -> pa.Table:
    """(image_sha256, image_uri) of images neither stored nor permanently rejected, deduplicated, ordered by sha256."""
    readable = hashed.filter(pc.is_valid(hashed["sha256"])).select(["sha256", "image_uri"])
    readable = readable.set_column(1, "image_uri", readable["image_uri"].cast(URI))
    each = readable.group_by("sha256", use_threads=False).aggregate([("image_uri", "first")])
    commits = store.commits()
    lasting = pa.array(list(rejected_images(commits, lasting=True)), SHA_TYPE)
    new = each.filter(pc.invert(pc.is_in(each["sha256"], pa.concat_arrays([store.checksums(commits), lasting])))).sort_by(
        "sha256"
    )
    return pa.table({"image_sha256": new["sha256"], "image_uri": new["image_uri_first"]})


def chunk_rows(images: int, config: "EmbedConfig") -> int:
    """Rows per chunk: smaller for small jobs, so that all cores work and a kill costs little; at least one batch."""
    cores = max(int("".join(c for c in config.spark_master.partition("[")[2] if c.isdigit()) or 4), 1)
    fair = -(-images // (4 * cores))
    batch = config.batch_rows
    return max(batch, min(config.chunk, -(-fair // batch) * batch))
