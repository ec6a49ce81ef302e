"""From an answer back to the catalogue: which picture, which vector, which segment, which versions."""

import numpy as np
import pyarrow.compute as pc

from serving.contract.keys import product_key
from tasks import storage
from tasks.catalog.snapshot import product_batches
from tasks.embed.store import Commit, EmbeddingStore
from tasks.errors import VitrineError
from tasks.index.vectors import shard_uri
from tasks.registry import INDEX_MODEL, Registry


def trace_product(registry: Registry, product_id: str, version: str = "") -> list[tuple[str, str]]:
    """The chain of what a product's place in an index version rests on. Raises VitrineError when it is not in that version."""
    found = registry.version(INDEX_MODEL, version) if version else registry.require_alias(INDEX_MODEL, "live")
    manifest = registry.index_manifest(found.version)
    key = product_key(product_id)
    shard = key % manifest.shards
    steps = [("product", f"{product_id} (key {key})")]
    row = _snapshot_row(manifest.snapshot.uri, product_id)
    if row is None:
        raise VitrineError(
            f"product {product_id!r} is not in the snapshot {manifest.snapshot.id} of index version {found.version}"
        )
    steps.append(("snapshot", f"{manifest.snapshot.id}, {manifest.snapshot.uri}"))
    steps.append(("picture", row["image_uri"]))
    run_key = found.tags.get("run_key", manifest.id)
    store_root = manifest.snapshot.uri.rsplit("/snapshots/", 1)[0]
    sha = _image_sha(shard_uri(storage.join(store_root, "vectors", run_key), shard), key)
    if sha is None:
        reason = _quarantined(storage.join(store_root, "quarantine", f"{run_key}.parquet"), key)
        raise VitrineError(f"product {product_id!r} has no vector in index version {found.version}: {reason}")
    steps.append(("image sha256", sha.hex()))
    encoder = manifest.encoder
    folder = storage.join(store_root, "embeddings", encoder.name, f"v{encoder.version}-{encoder.document_fingerprint[:12]}")
    store = EmbeddingStore(folder, encoder.dim)
    part = next((c for c in store.commits() if c.rows and _holds(store, c, sha)), None)
    steps.append(("embedding part", f"{folder}/{part.name}.parquet" if part else "(collected)"))
    segment = next(s for s in manifest.segments if s.shard == shard and s.kind == "base")
    steps.append(
        (
            "shard segment",
            f"shard {shard}, {segment.family}, {segment.index.path if segment.index else ''} {segment.table.sha256[:12]}",
        )
    )
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    steps.append(("index version", f"{found.version}{aliases}, run {found.run_id}"))
    steps.append(
        ("encoder version", f"{encoder.version}, {encoder.document} {encoder.document_fingerprint[:12]}, run {encoder.run_id}")
    )
    return steps


def _snapshot_row(uri: str, product_id: str) -> dict | None:
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
    return (
        f"in quarantine, {table['reason'][place].as_py()}: {table['detail'][place].as_py()}"
        if place >= 0
        else "not in quarantine either"
    )


def _holds(store: EmbeddingStore, commit: Commit, sha: bytes) -> bool:
    return pc.index(store.part(commit, ["image_sha256"])["image_sha256"], sha).as_py() >= 0
