"""From an answer back to the catalogue: which picture, which vector, which segment, which versions."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.keys import product_key
from serving.contract.manifest import EncoderRef, IndexManifest, Segment
from tasks import storage
from tasks.catalog.snapshot import product_batches
from tasks.embed.store import Commit, EmbeddingStore
from tasks.errors import VitrineError
from tasks.index.vectors import shard_uri
from tasks.registry import INDEX_MODEL, Registry


def trace_product(registry: Registry, product_id: str, version: str = "") -> list[tuple[str, str]]:
    """The chain of what a product's place in an index version (default: live) rests on, from the answer back to the catalogue.

    Raises VitrineError when the product cannot be found in that version, with the reason: hidden by a tombstone, in quarantine,
    or not in its snapshot.
    """
    found = registry.version(INDEX_MODEL, version) if version else registry.require_alias(INDEX_MODEL, "live")
    manifest = registry.index_manifest(found.version)
    key = product_key(product_id)
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    segment, row = _holding(registry, manifest, key, found.version, product_id)
    assert segment.index is not None
    encoder, snapshot = manifest.encoder, manifest.snapshot
    run_key = registry.run_key(segment.table.run_id) or found.tags.get("run_key", manifest.id)
    root = snapshot.uri.rsplit("/snapshots/", 1)[0]
    sha = _image_sha(shard_uri(storage.join(root, "vectors", run_key), segment.shard), key)
    return [
        ("product", f"{product_id} (key {key})"),
        ("index version", f"{found.version}{aliases}, run {found.run_id}"),
        ("segment", f"{segment.kind} {segment.sequence} of shard {segment.shard}, {segment.family}, {segment.index.sha256[:12]}"),
        ("made by", f"{run_key}, run {segment.table.run_id}"),
        ("encoder version", f"{encoder.version}, {encoder.document} {encoder.document_fingerprint[:12]}, run {encoder.run_id}"),
        ("vector", _part(root, encoder, sha) if sha else "(the vectors of that run are no longer kept)"),
        ("image sha256", sha.hex() if sha else "(not kept)"),
        ("picture", str(row["image_uri"])),
        ("snapshot", f"{snapshot.id}, {snapshot.uri}"),
        ("catalogue", _catalogue_row(snapshot.uri, product_id, row)),
    ]


def _holding(
    registry: Registry, manifest: IndexManifest, key: int, version: str, product_id: str
) -> tuple[Segment, dict[str, Any]]:
    """The newest segment that holds the key and is not hidden by a tombstone, with the product's row in it."""
    mine = sorted((s for s in manifest.segments if s.shard == key % manifest.shards), key=lambda s: s.sequence, reverse=True)
    for segment in (s for s in mine if s.index is not None):
        table = pq.read_table(registry.file(segment.table), columns=["key", "image_uri", "updated_at", "title"])
        place = pc.index(table["key"], key).as_py()
        if place < 0:
            continue
        for later in (s for s in mine if s.kind == "tombstones" and s.sequence > segment.sequence):
            if pc.index(pq.read_table(registry.file(later.table), columns=["key"])["key"], key).as_py() >= 0:
                raise VitrineError(
                    f"product {product_id!r} is not in index version {version}: tombstones {later.sequence} of shard {later.shard} hide it"
                )
        return segment, table.slice(place, 1).to_pylist()[0]
    raise VitrineError(
        f"product {product_id!r} is not in index version {version}: {_missing(registry, manifest, key, product_id)}"
    )


def _missing(registry: Registry, manifest: IndexManifest, key: int, product_id: str) -> str:
    snapshot = manifest.snapshot
    if _snapshot_row(snapshot.uri, product_id) is None:
        return f"it is not in its snapshot {snapshot.id} either"
    runs = {s.table.run_id for s in manifest.segments}
    root = snapshot.uri.rsplit("/snapshots/", 1)[0]
    for run in sorted(runs):
        uri = storage.join(root, "quarantine", f"{registry.run_key(run)}.parquet")
        if storage.exists(uri) and (why := _quarantined(uri, key)):
            return why
    return f"it is in its snapshot {snapshot.id}, and neither indexed nor in quarantine"


def _part(root: str, encoder: EncoderRef, sha: bytes) -> str:
    folder = storage.join(root, "embeddings", encoder.name, f"v{encoder.version}-{encoder.document_fingerprint[:12]}")
    store = EmbeddingStore(folder, encoder.dim)
    part = next((c for c in store.commits() if c.rows and _holds(store, c, sha)), None)
    return f"{folder}/{part.name}.parquet" if part else "(its part of the embedding store is no longer kept)"


def _catalogue_row(uri: str, product_id: str, row: dict[str, Any]) -> str:
    changed = f", changed {row['updated_at']:%Y-%m-%d %H:%M} UTC" if row.get("updated_at") else ""
    title = f"{row['title']}{changed}"
    return title if _snapshot_row(uri, product_id) else f"{title}, after the snapshot"


def _snapshot_row(uri: str, product_id: str) -> dict[str, Any] | None:
    if not storage.exists(storage.join(uri, "_manifest.json")):
        return None
    for batch in product_batches(uri, ["product_id", "image_uri"]):
        hits = np.flatnonzero(pc.equal(batch["product_id"], product_id).to_numpy(zero_copy_only=False))
        if len(hits):
            return batch.slice(int(hits[0]), 1).to_pylist()[0]
    return None


def _image_sha(uri: str, key: int) -> bytes | None:
    """The image that a key's vector was made of, from a shard's parts."""
    for part in storage.listing(uri, ".parquet"):
        table = storage.read_table(part, ["key", "image_sha256"])
        place = pc.index(table["key"], key).as_py()
        if place >= 0:
            return table["image_sha256"][place].as_py()
    return None


def _quarantined(uri: str, key: int) -> str:
    table = storage.read_table(uri)
    place = pc.index(table["key"], key).as_py()
    return f"in quarantine, {table['reason'][place].as_py()}: {table['detail'][place].as_py()}" if place >= 0 else ""


def _holds(store: EmbeddingStore, commit: Commit, sha: bytes) -> bool:
    return pc.index(store.part(commit, ["image_sha256"])["image_sha256"], sha).as_py() >= 0
