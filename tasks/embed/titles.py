"""Products that name no picture, embedded by the text tower from their titles: rows of position -1, which only words find."""

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.encoder import EncoderFolder
from serving.contract.palette import PALETTE, PALETTE_TYPE
from serving.versions.text_encoder import TextEncoder, text_variant
from tasks.catalog.snapshot import Snapshot, product_batches
from tasks.embed.store import SHA_TYPE, EmbeddingStore, vector_column
from tasks.embed.worker import HASHED
from tasks.progress import Progress

TITLE = -1
"""The position of a title among the pictures of its product, which has no other."""
CHUNK = 2048
"""Titles of one part of the store, and what a kill costs."""
NO_TOWER = "no_text_tower"


def with_titles(hashed: pa.Table, snapshot: Snapshot, encoders: EncoderFolder, store: EmbeddingStore, run_key: str) -> pa.Table:
    """`hashed` (worker.HASHED) where products that name no picture have the position TITLE and the sha256 of their title, whose vector
    is in the store then, for what titles it lacked; or the reason NO_TOWER where the encoder version cannot embed words.

    Products whose pictures are named stay as they are, and so does one whose title is blank. A title that is the same as another's is
    embedded once, and so is one that an earlier run embedded with this encoder version.
    """
    titles = bare_titles(snapshot)
    bare = pc.and_(pc.equal(hashed["image_uri"], ""), pc.is_in(hashed["key"], pa.array(list(titles), pa.int64())))
    if not pc.any(bare).as_py():
        return hashed
    rows = hashed.filter(bare).to_pylist()
    if not text_variant(encoders.manifest):
        detail = "the product has no picture, and the encoder version has no text tower that could embed its title"
        rows = [row | {"reason": NO_TOWER, "detail": detail} for row in rows]
    else:
        found = {row["key"]: titles[row["key"]] for row in rows}
        embed_titles(found.values(), encoders, store, run_key)
        rows = [
            row | {"position": TITLE, "sha256": title_sha256(found[row["key"]]), "reason": None, "detail": None} for row in rows
        ]
    return pa.concat_tables([hashed.filter(pc.invert(bare)), pa.Table.from_pylist(rows, HASHED)])


def title_sha256(title: str) -> bytes:
    """What names a title's vector in the store; no picture has such a content."""
    return hashlib.sha256(b"title\0" + title.encode()).digest()


def missing_titles(titles: Collection[str], store: EmbeddingStore) -> dict[bytes, str]:
    """The titles that the store has no vector of, by their hashes and in order of them."""
    by_sha = {title_sha256(title): title for title in titles}
    shas = pa.array(sorted(by_sha), SHA_TYPE)
    absent = shas.filter(pc.invert(pc.is_in(shas, store.checksums()))) if by_sha else shas
    return {sha: by_sha[sha] for sha in absent.to_pylist()}


def embed_titles(titles: Collection[str], encoders: EncoderFolder, store: EmbeddingStore, run_key: str) -> None:
    """Writes the vectors of the titles that the store lacks, in order of their hashes. Each is embedded alone, as a query's words are."""
    missing = missing_titles(titles, store)
    text = TextEncoder.open(encoders) if missing else None
    if text is None:
        return
    todo = list(missing)
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("embed titles", len(todo), "titles") as progress:
        for start in range(0, len(todo), CHUNK):
            shas = todo[start : start + CHUNK]
            vectors = list(pool.map(text.encode, [missing[sha] for sha in shas]))
            store.write(_table(shas, np.stack(vectors).astype(np.float16), store.schema), [], run_key)
            progress.add(len(shas))


def bare_titles(snapshot: Snapshot) -> dict[int, str]:
    """The titles that are not blank of the products that name no picture, by key."""
    found: dict[int, str] = {}
    for batch in product_batches(snapshot.uri, ["key", "title", "image_uri"]) if snapshot.titles else ():
        rows = batch.filter(pc.equal(batch["image_uri"], ""))
        found |= {k: t for k, t in zip(rows["key"].to_pylist(), rows["title"].to_pylist(), strict=True) if t.strip()}
    return found


def _table(shas: list[bytes], vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Rows of the store; of what has no colours the palette is zeros, which are like none."""
    count = len(shas)
    return pa.table({
        "image_sha256": pa.array(shas, SHA_TYPE), "vector": vector_column(vectors),
        PALETTE: pa.array([bytes(PALETTE_TYPE.byte_width)] * count, PALETTE_TYPE),
        "width": pa.nulls(count, pa.int32()), "height": pa.nulls(count, pa.int32()),
        "embedded_at": pa.array([datetime.now(UTC)] * count, schema.field("embedded_at").type),
    }, schema)  # fmt: skip
