"""The validation steps of rebuild_index: Great Expectations on the snapshot and on the vectors, with their data docs in MLflow."""

import logging
from typing import TYPE_CHECKING

from tasks import storage
from tasks.catalog.snapshot import Snapshot, read_snapshot
from tasks.embed.job import EmbedResult
from tasks.errors import ValidationFailed
from tasks.pipelines.common import registry, scratch, settings
from tasks.pipelines.index_draft import EXPERIMENT
from tasks.pipelines.index_records import DataDocs
from tasks.registry import INDEX_MODEL, Registry

if TYPE_CHECKING:
    from tasks.validate.expectations import Validation

log = logging.getLogger(__name__)


def validate_snapshot(snapshot: Snapshot, run_key: str) -> DataDocs:
    """Validates the snapshot, and compares it with the live version's if that has the same source."""
    from tasks.validate.snapshot import SnapshotLimits, check_snapshot

    models, chosen = registry(), settings()
    live = models.alias(INDEX_MODEL, "live")
    previous = None
    if live is not None:
        uri = models.index_manifest(live.version).snapshot.uri
        previous = read_snapshot(uri) if storage.exists(storage.join(uri, "_manifest.json")) else None
        if previous is not None and previous.source != snapshot.source:
            previous = None
    limits = SnapshotLimits.from_settings(chosen)
    with scratch(run_key, "validate_snapshot") as folder:
        return publish_data_docs(models, run_key, snapshot.id, check_snapshot(snapshot, previous, folder / "snapshot", limits))


def validate_embeddings(snapshot: Snapshot, embedded: EmbedResult, run_key: str) -> DataDocs:
    """Validates the vectors, compared with the live version's, and the shard inputs."""
    from tasks.validate.embedding_moments import read_moments, write_moments
    from tasks.validate.embeddings import EmbeddingLimits, check_embeddings, check_index_inputs, inspect

    models, chosen = registry(), settings()
    found = inspect(embedded, snapshot, embedded.store_uri)  # the store's folder is named by the encoder's fingerprint
    write_moments(embedded.vectors_uri, found.moments)
    before = read_moments(storage.join(chosen.store_uri, "vectors", _live_run(models)))
    limits = EmbeddingLimits(
        most_quarantined=chosen.most_quarantined, most_duplicates=chosen.max_duplicates, most_mean_shift=chosen.max_mean_shift,
        most_covariance_shift=chosen.most_drift,
    )  # fmt: skip
    with scratch(run_key, "validate_embeddings") as folder:
        vectors = check_embeddings(found, embedded, snapshot, before, folder / "embeddings", limits)
        inputs = check_index_inputs(found, embedded, snapshot, folder / "index_inputs")
        return publish_data_docs(models, run_key, snapshot.id, vectors, inputs, note=embedded.note())


def publish_data_docs(models: Registry, run_key: str, snapshot_id: str, *validations: "Validation", note: str = "") -> DataDocs:
    """Stores the data docs in the MLflow run of this index; returns what passed and the links.

    Raises ValidationFailed, with the same links, naming every failed expectation, what was observed, and sample ids.
    """
    with models.run(EXPERIMENT, run_key, f"index {snapshot_id}") as run:
        for validation in validations:
            run.artifacts(validation.docs, f"data_docs/{validation.docs.name}")
            log.info("%s", validation.sentence)
        first = next((v for v in validations if not v.passed), validations[0])
        page = models.artifact_url(run.run_id, f"data_docs/{first.docs.name}/{first.page}")
        links = {"Data docs": page, "MLflow run": models.run_url(run.run_id)}
        failed = [v.sentence for v in validations if not v.passed]
        if failed:
            raise ValidationFailed(f"{'; '.join(failed)}. Details: {page}", links)
    return DataDocs({v.name: v.checked for v in validations}, links, note)


def _live_run(models: Registry) -> str:
    """Key of the run that built the live version's base, "none" without one."""
    live = models.alias(INDEX_MODEL, "live")
    if live is None:
        return "none"
    bases = [s for s in models.index_manifest(live.version).segments if s.kind == "base"]
    return (models.run_key(bases[0].table.run_id) if bases else "") or "none"
