"""Assembles a version's manifest and its golden answers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.counts import Counts
from serving.contract.files import FileRef, describe
from serving.contract.manifest import EncoderRef, EngineRef, IndexManifest, Scalar, Segment, SegmentPictures, SnapshotRef
from serving.contract.provenance import EmbeddingCommit
from serving.index.searcher import Searcher
from serving.versions.golden_answers import write_golden
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedResult
from tasks.index.build import BuiltShard
from tasks.index.choice import IndexConfig

GOLDEN_QUERIES = 16
EMPTY_SHA = "0" * 64


def content_key(
    snapshot_content: str, document_fingerprint: str, query_fingerprint: str, config: IndexConfig, ranker: dict[str, Any]
) -> str:
    """Hash of an index's inputs: equal keys mean equal answers."""
    parts = [snapshot_content, document_fingerprint, query_fingerprint, json.dumps(config.identity(), sort_keys=True)]
    if ranker:
        parts.append(json.dumps(ranker, sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def base_segment(built: BuiltShard, run_id: str, path: str) -> Segment:
    """The manifest's record of a built shard, with files as artifacts of `run_id` below `path`."""
    placed = {ref.path: ref.model_copy(update={"run_id": run_id, "path": f"{path}/{ref.path}"}) for ref in built.files}
    index = placed[built.index.path] if built.index is not None else None
    pictures = built.pictures and SegmentPictures(rows=built.pictures.rows, table=placed[built.pictures.table.path])
    return Segment(
        kind="base", shard=built.shard, sequence=0, rows=built.rows, family=built.family, index=index,
        table=placed[built.table.path], pictures=pictures,
    )  # fmt: skip


def draft_manifest(
    *, name: str, created_at: str, encoder: EncoderRef, snapshot: Snapshot, segments: list[Segment], search: dict[str, Scalar],
    ranker: dict[str, Any], embedded: EmbedResult, shards: int, key: str, embeddings: tuple[EmbeddingCommit, ...] = (),
    engine: EngineRef | None = None,
) -> IndexManifest:  # fmt: skip
    """The manifest before golden answers, gates, and the number of queries behind them. `key`: its content key. `engine`: the
    collection that holds the base rows; None: files of the segments."""
    indexed = sum(s.rows for s in segments)
    several = embedded.catalogue_pictures > embedded.catalogue
    counts = Counts(
        catalogue=snapshot.rows, embedded=embedded.embedded, quarantined=embedded.quarantined, indexed=indexed, servable=indexed,
        pictures=embedded.pictures if several else None, titles=embedded.titles or None,
        quarantined_pictures=embedded.quarantined_pictures if several else embedded.quarantined,
        quarantined_rows=snapshot.quarantined_rows,
    )  # fmt: skip
    reference = SnapshotRef(
        id=snapshot.id,
        uri=snapshot.uri,
        rows=snapshot.rows,
        content_sha256=snapshot.content_sha256,
        image_root=snapshot.image_root,
    )
    return IndexManifest(
        id=name, created_at=created_at, encoder=encoder, snapshot=reference, shards=shards, segments=tuple(segments), search=search,
        ranker=ranker, counts=counts, golden=FileRef(path="golden.npz", sha256=EMPTY_SHA, bytes=0), content_key=key,
        embeddings=embeddings, engine=engine,
    )  # fmt: skip


def with_golden(
    manifest: IndexManifest, searcher: Searcher, queries: np.ndarray, folder: Path, run_id: str, path: str
) -> IndexManifest:
    """The manifest with golden answers to a few of the queries (nq, d), written to `folder`/golden.npz."""
    chosen = queries[np.linspace(0, len(queries) - 1, min(GOLDEN_QUERIES, len(queries))).astype(int)]
    write_golden(folder / "golden.npz", searcher, chosen)
    return manifest.model_copy(update={"golden": describe(folder / "golden.npz", f"{path}/golden.npz", run_id)})


def local_files(folders: dict[str, Path]) -> Callable[[FileRef], Path]:
    """Locates segment files by name in the folders they were built in."""
    return lambda ref: folders[Path(ref.path).name]
