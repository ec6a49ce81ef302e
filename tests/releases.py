"""A whole small release in a folder, made with the pipeline's own code: a real encoder, real segments, golden answers."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.counts import Counts
from serving.contract.encoder import EncoderFolder
from serving.contract.files import FileRef, describe
from serving.contract.keys import shard_of
from serving.contract.manifest import EncoderRef, IndexManifest, SnapshotRef
from serving.contract.preprocess import decode
from serving.index.searcher import Searcher
from serving.versions.text_encoder import TextEncoder
from serving.versions.version_source import FolderSource
from tasks.catalog.snapshot import Snapshot, product_table, take_snapshot
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.template import train_template
from tasks.index.version_manifest import base_segment, with_golden
from tests.catalogs import small_catalog
from tests.tiny import tiny_encoder

SHARDS = 2
EMPTY = FileRef(path="golden.npz", sha256="0" * 64, bytes=0)


def make_release(home: Path, products: int = 12) -> Snapshot:
    """`home`/shop is the catalogue, `home`/release an exported release whose version "1" is live in blue."""
    snapshot = take_snapshot(str(small_catalog(home / "shop", products)), str(home / "snapshots"), "one")
    add_version(home, snapshot, "1")
    set_aliases(home, live="1", blue="1")
    return snapshot


def set_aliases(home: Path, **aliases: str) -> None:
    (home / "release" / "aliases.json").write_text(json.dumps(aliases))


def add_version(home: Path, snapshot: Snapshot, version: str, seed: int = 0, words: bool = False) -> IndexManifest:
    """Builds an index version with the tiny encoder of this seed and adds it to the exported release; with `words` one that answers
    them, and that holds the products without a picture by their titles."""
    release, work = home / "release", home / "work" / version
    encoder = tiny_encoder(home / "encoders" / str(seed), seed=seed, words=words)
    folder = EncoderFolder(home / "encoders" / str(seed))
    manifest_ref = describe(folder.folder / "encoder.json", "encoder/encoder.json")
    shutil.copytree(folder.folder, release / "encoders" / manifest_ref.sha256, dirs_exist_ok=True)
    keys, positions, paths = usable_pictures(snapshot)
    pixels = [decode(path.read_bytes(), encoder.preprocess) for path in paths]
    vectors = folder.open(encoder.document).encode(np.stack(pixels))
    shown = vectors
    if words:
        bare = [row for row in product_table(snapshot.uri).to_pylist() if not row["image_uri"]]
        text = TextEncoder.open(folder)
        keys = np.append(keys, np.array([row["key"] for row in bare], np.int64))
        positions = np.append(positions, np.full(len(bare), -1, np.int16))
        vectors = np.stack([*vectors, *(text.encode(row["title"]) for row in bare)])
    write_vectors(work / "vectors", keys, positions, vectors)
    template = train_template(str(work / "vectors"), IndexConfig(shards=SHARDS), work)
    built = [build_shard(str(work / "vectors"), snapshot.uri, template, shard, work / str(shard)) for shard in range(SHARDS)]
    print_ = encoder.variant(encoder.document).fingerprint
    rows = snapshot.rows
    manifest = IndexManifest(
        id=f"made {version}", created_at="2026-11-23T00:00:00+00:00",
        encoder=EncoderRef(
            name=encoder.name, version=str(seed + 1), run_id="", manifest=manifest_ref, document=encoder.document,
            document_fingerprint=print_, query=encoder.query, query_fingerprint=print_, dim=encoder.dim,
        ),
        snapshot=SnapshotRef(
            id=snapshot.id, uri=snapshot.uri, rows=rows, content_sha256=snapshot.content_sha256, image_root=snapshot.image_root
        ),
        shards=SHARDS, segments=tuple(base_segment(b, "", "files") for b in built), search={"family": template.family, "candidates": 500},
        counts=Counts(catalogue=rows, embedded=rows, quarantined=0, indexed=rows, servable=rows), golden=EMPTY,
    )  # fmt: skip
    files = {p.name: p for shard in range(SHARDS) for p in (work / str(shard)).iterdir()}
    searcher = Searcher.open(manifest, lambda ref: files[Path(ref.path).name])
    manifest = with_golden(manifest, searcher, shown[:6], work, "", "files")
    files["golden.npz"] = work / "golden.npz"
    (release / "files").mkdir(parents=True, exist_ok=True)
    for ref in manifest.files():
        shutil.copy(files[Path(ref.path).name], release / "files" / ref.sha256)
    (release / version).mkdir(exist_ok=True)
    (release / version / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def usable_pictures(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Key, position and path of every picture of the snapshot's products that is a file."""
    found = []
    for row in product_table(snapshot.uri).to_pylist():
        for position, uri in enumerate([row["image_uri"], *(row.get("images") or [])]):
            path = Path(snapshot.image_root) / uri
            found += [(row["key"], position, path)] if path.is_file() else []
    keys, positions, paths = zip(*found, strict=True)
    return np.array(keys), np.array(positions, np.int16), list(paths)


def write_vectors(folder: Path, keys: np.ndarray, positions: np.ndarray, vectors: np.ndarray) -> None:
    """vectors/shard=<i>/part-00000.parquet as the embedding step leaves them."""
    order = np.lexsort((positions, keys))
    keys, positions, vectors = keys[order], positions[order], vectors[order].astype(np.float16)
    for shard in range(SHARDS):
        mine = shard_of(keys, SHARDS) == shard
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[mine].ravel()), vectors.shape[1])
        shas = pa.array([hashlib.sha256(v.tobytes()).digest() for v in vectors[mine]], pa.binary(32))
        path = folder / f"shard={shard}" / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        columns = {"key": keys[mine], "image_sha256": shas, "vector": column}
        pq.write_table(pa.table(columns | ({"position": positions[mine]} if positions.any() else {})), path)


def source(home: Path) -> FolderSource:
    return FolderSource(home / "release")
