"""The draft of a new base version that tuning and registration open: its manifest, its exact truth, and what determines its content."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from serving.contract.manifest import EncoderRef, IndexManifest, Scalar
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedResult, embedding_commit
from tasks.index.build import BuiltShard
from tasks.index.choice import Budget, IndexConfig
from tasks.pipelines.collection_steps import engine_ref
from tasks.pipelines.common import settings
from tasks.registry import INDEX_EXPERIMENT, INDEX_PATH
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.release.gates.evaluate import GroundTruthOf

EXPERIMENT = INDEX_EXPERIMENT


def index_config(chosen: Settings) -> IndexConfig:
    """The index configuration from the settings."""
    budget = Budget(
        ram_bytes=chosen.index_ram_mb * 2**20 or math.inf,
        p99_ms=chosen.index_p99_ms or math.inf,
        build_s=chosen.index_build_s or math.inf,
        clients=chosen.index_clients,
    )
    return IndexConfig(
        shards=chosen.shards, family=chosen.index_family, recall_target=chosen.recall_target, budget=budget, engine=chosen.engine
    )


def content_key_of(snapshot: Snapshot, encoder: EncoderRef, ranker: dict[str, Any]) -> str:
    """The content key of the version that the settings would make of these inputs."""
    from tasks.index.version_manifest import content_key

    prints = (encoder.document_fingerprint, encoder.query_fingerprint)
    return content_key(snapshot.content_sha256, *prints, index_config(settings()), ranker)


def draft(
    snapshot: Snapshot, encoder: EncoderRef, shards: Sequence[BuiltShard], search: dict[str, Scalar], run_key: str,
    embedded: EmbedResult | None = None, run_id: str = "",
) -> IndexManifest:  # fmt: skip
    """The manifest of built shards, without golden answers and gates. Without `embedded` its counts are those of the shards."""
    from tasks.index.ranker_config import read_ranker
    from tasks.index.version_manifest import base_segment, draft_manifest

    segments = [base_segment(built, run_id, INDEX_PATH) for built in shards]
    rows = sum(s.rows for s in segments)
    ranker = read_ranker(settings().ranker)
    return draft_manifest(
        name=run_key, created_at=datetime.now(UTC).isoformat(timespec="seconds"), encoder=encoder, snapshot=snapshot,
        segments=segments, search=search, ranker=ranker, embedded=embedded or EmbedResult.all_embedded(run_key, rows),
        shards=len(shards), key=content_key_of(snapshot, encoder, ranker),
        embeddings=(embedding_commit(embedded, encoder.document_fingerprint),) if embedded else (), engine=engine_ref(shards),
    )  # fmt: skip


def truth_of(snapshot: Snapshot, encoder: EncoderRef, vectors_uri: str, shards: int) -> "GroundTruthOf":
    """A function from queries to their exact neighbours; tuning and gates share its cache in the store."""
    from tasks.index.ground_truth import exact_truth

    place = storage.join(settings().store_uri, "truth")
    content = f"{snapshot.content_sha256} {encoder.document_fingerprint}"
    return lambda xq: exact_truth(vectors_uri, shards, xq, place, content)
