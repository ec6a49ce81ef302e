"""Traces a product in a version back to the catalogue: picture, vector, segment, versions."""

import hashlib
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.keys import product_key
from serving.contract.manifest import EncoderRef, IndexManifest, Segment
from serving.contract.provenance import EmbeddingCommit
from serving.contract.segments import IMAGES, PICTURES, read_pictures
from tasks import storage
from tasks.catalog.changes.ledger import DELETED, INDEXED, QUARANTINED, ledger_of
from tasks.catalog.snapshot import product_batches
from tasks.embed.job import MANIFEST
from tasks.embed.quarantine import QuarantineEntry, read_quarantine
from tasks.embed.store import Commit, EmbeddingStore
from tasks.errors import VitrineError
from tasks.index.vectors import shard_uri
from tasks.registry import INDEX_MODEL, Registry


def trace_product(registry: Registry, product_id: str, version: str = "") -> list[tuple[str, str]]:
    """The lineage of one product in an index version (default: live), as (step, value) pairs.

    Where a newer run could not use the product's picture, the last row says so. Raises VitrineError when the product cannot be
    found in that version, with the reason: quarantined, deleted, or in neither its snapshot nor a change since.
    """
    found = registry.version(INDEX_MODEL, version) if version else registry.require_alias(INDEX_MODEL, "live")
    newest = max([found, *registry.versions(INDEX_MODEL, 1)], key=lambda v: int(v.version))
    manifest, latest = (registry.manifest_of(v) for v in (found, newest))
    key = product_key(product_id)
    quarantine = read_quarantine(_store(manifest), key=key)
    state = _state(registry, latest, key, product_id)
    rejected = _rejected(quarantine, latest, state)
    held = _holding(registry, manifest, key)
    if held is None:
        why = _absence(registry, manifest, key, product_id, quarantine, rejected)
        newer = f"; index version {newest.version} has it" if state == INDEXED and newest.version != found.version else ""
        raise VitrineError(f"product {product_id!r} is not in index version {found.version}: {why}{newer}")
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    segment, row = held
    encoder, snapshot, store = manifest.encoder, manifest.snapshot, _store(manifest)
    run_key = registry.run_key(segment.table.run_id) or found.tags.get("run_key", manifest.id)
    commit, sha = _committed(manifest, segment.shard, key)
    if sha is None:  # a version of before names no commits: the folder is that of the run
        sha = _image_sha(shard_uri(storage.join(store, "vectors", run_key), segment.shard), key)
    pictures = _pictures_of(registry, segment, key)
    chain = [
        ("product", f"{product_id} (key {key})"),
        ("index version", f"{found.version}{aliases}, run {found.run_id}"),
        ("segment", f"{segment.kind} {segment.sequence} of shard {segment.shard}, {segment.family}, {_place(manifest, segment)}"),
        ("made by", f"{run_key}, run {segment.table.run_id}"),
        ("encoder version", f"{encoder.version}, {encoder.document} {encoder.document_fingerprint[:12]}, run {encoder.run_id}"),
        ("vector", _part(store, encoder, sha, commit) if sha else "(the vectors of that run are no longer kept)"),
        *([("embedding commit", _commit_state(commit))] if commit else []),
        ("image sha256" if row["image_uri"] else "title sha256", sha.hex() if sha else "(not kept)"),
        ("picture", str(row["image_uri"]) or "none: it is found by its title"),
        *_picture_steps(pictures, store, encoder, row),
        ("snapshot", f"{snapshot.id}, {snapshot.uri}"),
        ("catalogue", _catalogue_row(snapshot.uri, product_id, row)),
    ]
    older = f"; the picture above is an older one, shown while index version {found.version} serves"
    return [*chain, ("quarantined", rejected + older)] if rejected else chain


def _place(manifest: IndexManifest, segment: Segment) -> str:
    """Where a segment's vectors lie: the checksum of its FAISS file, or the engine's collection."""
    if segment.index is not None:
        return segment.index.sha256[:12]
    return f"{manifest.engine.name} {manifest.engine.collection}" if manifest.engine else "nowhere"


def _store(manifest: IndexManifest) -> str:
    return manifest.snapshot.uri.rsplit("/snapshots/", 1)[0]


def _holding(registry: Registry, manifest: IndexManifest, key: int) -> tuple[Segment, dict[str, Any]] | None:
    """The newest segment with the key, and its row; None when there is none or it is tombstoned."""
    mine = sorted((s for s in manifest.segments if s.shard == key % manifest.shards), key=lambda s: s.sequence, reverse=True)
    for segment in (s for s in mine if s.holds_rows):
        path = registry.file(segment.table)
        there = pq.read_schema(path).names
        table = pq.read_table(path, columns=[n for n in ("key", "image_uri", IMAGES, "updated_at", "title") if n in there])
        place = pc.index(table["key"], key).as_py()
        if place < 0:
            continue
        later = (s for s in mine if s.kind == "tombstones" and s.sequence > segment.sequence)
        return None if any(_has(registry, s, key) for s in later) else (segment, table.slice(place, 1).to_pylist()[0])
    return None


def _pictures_of(registry: Registry, segment: Segment, key: int) -> list[tuple[int, bytes | None]]:
    """Position and content of each of a product's pictures in its segment, in order; none where each product has one."""
    if segment.pictures is None:
        return []
    table = read_pictures(registry.file(segment.pictures.table), segment.pictures.rows, PICTURES.names)
    mine = table.filter(pa.array(table["product"].to_numpy() == key)).sort_by("position")
    return list(zip(mine["position"].to_pylist(), mine["image_sha256"].to_pylist(), strict=True))


def _picture_steps(
    pictures: list[tuple[int, bytes | None]], store: str, encoder: EncoderRef, row: dict[str, Any]
) -> list[tuple[str, str]]:
    """One step for each picture: where it is, its content, and the part of the store that its vector is in."""
    steps = []
    for position, sha in pictures:
        uri = row["image_uri"] if position <= 0 else (row.get(IMAGES) or [])[position - 1]
        part = f", {sha.hex()[:12]}, {_part(store, encoder, sha, None)}" if sha else ""
        steps.append(("title", f"{row['title']}{part}") if position < 0 else (f"picture {position}", f"{uri}{part}"))
    return steps


def _has(registry: Registry, segment: Segment, key: int) -> bool:
    return pc.index(pq.read_table(registry.file(segment.table), columns=["key"])["key"], key).as_py() >= 0


def _state(registry: Registry, manifest: IndexManifest, key: int, product_id: str) -> str:
    """The ledger state of a product: indexed, quarantined or deleted; "" when it did not change since the base."""
    change = _change(registry, manifest, key)
    if change is not None:
        return str(change["state"])
    if any(_has(registry, s, key) for s in manifest.segments if s.kind == "base" and s.shard == key % manifest.shards):
        return INDEXED
    return QUARANTINED if _snapshot_row(manifest.snapshot.uri, product_id) else ""


def _change(registry: Registry, manifest: IndexManifest, key: int) -> dict[str, Any] | None:
    """The ledger row of a product, None when it did not change since the base."""
    ledger = ledger_of(manifest, registry.file)
    place = pc.index(ledger["key"], key).as_py()
    return ledger.slice(place, 1).to_pylist()[0] if place >= 0 else None


def _rejected(quarantine: list[QuarantineEntry], latest: IndexManifest, state: str) -> str:
    """Why the last run could not use the product's picture; "" when it could.

    `state` is the product's in the newest version `latest`; a run after that may have failed before it made a version.
    """
    last = quarantine[0] if quarantine else None
    if state == QUARANTINED:
        return last.sentence if last else "the list of reasons of that run is no longer kept"
    after = last is not None and last.at is not None and last.at > datetime.fromisoformat(latest.created_at)
    return last.sentence if last and after else ""


def _absence(
    registry: Registry, manifest: IndexManifest, key: int, product_id: str, quarantine: list[QuarantineEntry], rejected: str
) -> str:
    """Why a version lacks a product."""
    state, snapshot = _state(registry, manifest, key, product_id), manifest.snapshot
    change = _change(registry, manifest, key)
    if rejected or state == QUARANTINED:
        return f"quarantined: {rejected or _rejected(quarantine, manifest, state)}"
    if change is not None and state == DELETED:
        return f"a change of {change['updated_at']:%Y-%m-%d %H:%M} UTC deleted it"
    if state == INDEXED:
        return "its changes say that it should be; vitrine index check names what is damaged"
    if not storage.exists(storage.join(snapshot.uri, "_manifest.json")):
        return f"no change since its snapshot {snapshot.id} names it, and that snapshot is no longer kept"
    return f"it is neither in its snapshot {snapshot.id} nor in a change since"


def _committed(manifest: IndexManifest, shard: int, key: int) -> tuple[EmbeddingCommit | None, bytes | None]:
    """The newest of the version's embedding commits that has a vector of the key, and the sha256 of its image, or of its title."""
    for commit in reversed(manifest.embeddings):
        if (sha := _image_sha(shard_uri(commit.uri, shard), key)) is not None:
            return commit, sha
    return None, None


def _commit_state(commit: EmbeddingCommit) -> str:
    """Where a commit is, and whether it is still the one that the manifest names."""
    uri = storage.join(commit.uri, MANIFEST)
    if not storage.exists(uri):
        return f"{commit.uri} (its {MANIFEST} is gone)"
    same = hashlib.sha256(storage.read_bytes(uri)).hexdigest() == commit.sha256
    return f"{commit.uri}, {commit.sha256[:12]}{'' if same else f' (its {MANIFEST} is another by now: it was changed)'}"


def _part(root: str, encoder: EncoderRef, sha: bytes, commit: EmbeddingCommit | None) -> str:
    folder = storage.join(root, "embeddings", encoder.name, f"v{encoder.version}-{encoder.document_fingerprint[:12]}")
    folder = commit.store if commit else folder
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
    """The sha256 of the image, or the title, behind a key's vector, from the shard's parts."""
    for part in storage.list_files(uri, ".parquet"):
        table = storage.read_table(part, ["key", "image_sha256"])
        place = pc.index(table["key"], key).as_py()
        if place >= 0:
            return table["image_sha256"][place].as_py()
    return None


def _holds(store: EmbeddingStore, commit: Commit, sha: bytes) -> bool:
    return pc.index(store.part(commit, ["image_sha256"])["image_sha256"], sha).as_py() >= 0
