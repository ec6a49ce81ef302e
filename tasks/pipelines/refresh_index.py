"""The steps of refresh_index, also used by `vitrine stream`: changes become a small index version on top of a parent.

Each step stores its result under the run's key, so that a killed run resumes with the same changes and makes the same files. A
message is acknowledged once a version that contains its change has passed its gates and is registered.
"""

import dataclasses
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serving.contract.files import FileRef, atomic_write, verify
from serving.contract.manifest import IndexManifest
from tasks import storage
from tasks.catalog.snapshot import product_table, read_snapshot, started_at
from tasks.errors import GateFailed
from tasks.index.template import Template
from tasks.pipelines.common import embed_config, query_runtime, registry, scratch, settings
from tasks.pipelines.drain_changes import (
    VERSIONS,
    base_keys,
    change_source,
    changed_rows,
    columns_of,
    extend_visibility,
    ledger_of,
    plan_on,
)
from tasks.pipelines.index_draft import EXPERIMENT
from tasks.pipelines.index_records import Acknowledgement, EmbeddedChanges, RefreshPlan, RegisteredVersion
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry, Run, Version
from tasks.registry.binding import index_tags, signed, signing_key
from tasks.release.promotion.proposal import propose

log = logging.getLogger(__name__)

PACED = 50
"""Fewest pictures that a throughput is computed from."""
DIRECT_PICTURES = 2_000
"""Up to so many new pictures are embedded without Spark, whose start takes about 20 s here (docs/decisions/0021)."""


def catch_up(registered: RegisteredVersion, run_key: str) -> RegisteredVersion:
    """Carries changes of hourly versions, made while a base was built, over to the new base; reads no queue.

    Returns the version to publish: the base itself when nothing was missed.
    """
    if not registered.passed:
        return registered
    models = registry()
    versions = models.versions(INDEX_MODEL, VERSIONS)
    parent = models.version(INDEX_MODEL, registered.version)
    plan = plan_on(f"{run_key}.caught-up", models, versions, parent, None, 0, 0)
    if not plan.due:
        return registered
    log.info("version %s: %s", parent.version, plan.summary)
    return register(plan, embed(plan))


def embed(plan: RefreshPlan) -> EmbeddedChanges:
    """Embeds new products and pictures through the embedding job and store: each picture once, whichever path meets it first."""
    from tasks.catalog.changes.drain import NO_LIMITS, UpsertSource
    from tasks.catalog.snapshot import write_snapshot
    from tasks.embed.job import embed_snapshot

    chosen = settings()
    models = registry(chosen)
    extend_visibility(chosen, plan)
    manifest = models.index_manifest(plan.parent)
    rows = changed_rows(plan)
    if not plan.upserts:
        return EmbeddedChanges()
    columns = columns_of(models, manifest)
    source = UpsertSource(f"changes of {plan.run_key}", manifest.snapshot.image_root, rows, columns)
    uri = storage.join(chosen.store_uri, "snapshots", plan.run_key)
    snapshot = (
        read_snapshot(uri)
        if storage.exists(storage.join(uri, "_manifest.json"))
        else write_snapshot(source, source.name, uri, plan.run_key, plan.now, NO_LIMITS)
    )
    config = dataclasses.replace(embed_config(chosen, manifest.shards), direct=DIRECT_PICTURES, hash_cache=False)
    began = datetime.now(UTC)
    with scratch(plan.run_key, "embed") as work:
        embedded = embed_snapshot(
            snapshot, models.encoder_folder(manifest.encoder.version), manifest.encoder.version, chosen.store_uri, plan.run_key,
            work, config,
        )  # fmt: skip
    took = (datetime.now(UTC) - began).total_seconds()
    pace = embedded.embedded_now / took if embedded.embedded_now >= PACED else 0.0
    return EmbeddedChanges(embedded, snapshot.uri, round(pace, 2), embedded.note("changed products"))


def register(plan: RefreshPlan, embedded: EmbeddedChanges, photos: int = 0) -> RegisteredVersion:
    """Builds, evaluates and registers the version: a delta and a tombstone segment per touched shard, the usual gates.

    `photos` limits the held-out photos that the gates search with (0: all).
    """
    chosen = settings()
    models = registry(chosen)
    extend_visibility(chosen, plan)
    run_key = plan.run_key
    made = next((v for v in models.versions(INDEX_MODEL, VERSIONS) if v.tags.get("run_key") == run_key), None)
    if made is not None:
        return _registered(made)
    with models.run(EXPERIMENT, run_key, f"delta on version {plan.parent}") as run, scratch(run_key, "register") as folder:
        from tasks.pipelines.index_page import headline_metrics, index_page
        from tasks.release.gates.index_gates import decision_of

        manifest, measured = _version(models, plan, embedded, run, folder, photos)
        decision = decision_of(manifest.gates)
        manifest = signed(manifest, signing_key(chosen))
        _upload(run, manifest, folder)
        run.params({"parent": plan.parent, "changes": plan.changes, "encoder_version": manifest.encoder.version})
        run.metrics(headline_metrics(measured))
        run.metrics({f"changes.{name}": count for name, count in unusable(plan, embedded).items()})
        note = f"; {embedded.note}" if embedded.note else ""
        text = f"{plan.summary}: {manifest.counts.servable} products{note}; {decision.summary}"
        page = index_page(models, run.run_id, text, measured, manifest.gates)
        version = models.register(INDEX_MODEL, run.run_id, INDEX_PATH, _tags(plan, embedded, manifest, decision.passed), page)
    record = _registered(version)
    log.info("%s", record.summary)
    return record


def unusable(plan: RefreshPlan, embedded: EmbeddedChanges) -> dict[str, int]:
    """Number of dead letters and of quarantined products."""
    return {"dead_letters": plan.dead_letters, "quarantined": embedded.quarantined}


def acknowledge(plan: RefreshPlan, registered: RegisteredVersion, embedded: EmbeddedChanges) -> Acknowledgement:
    """Acknowledges the messages once a passing version contains their changes.

    Raises GateFailed with the failed gates of a version that did not pass; its changes stay in the queue.
    """
    chosen = settings()
    handles = storage.read_json(storage.join(plan.uri, "handles.json"))
    with change_source(chosen) as source:
        if not registered.passed:
            source.release(handles)
            raise GateFailed(registered.summary)
        source.acknowledge(handles)
        waiting = source.count_waiting()
    notes = [note for note in (plan.note, embedded.note) if note]
    summary = "; ".join([f"{len(handles)} messages acknowledged, {waiting} still waiting", *notes])
    log.info("%s", summary)
    return Acknowledgement(len(handles), waiting, plan.dead_letters, embedded.quarantined, summary)


def publish(registered: RegisteredVersion) -> bool:
    """Makes the version the candidate, unless one on a newer snapshot is; then the next refresh carries it over.

    A candidate that never was live is marked as superseded by it.
    """
    from tasks.release.ancestry import covered_versions

    models = registry()
    candidate = models.alias(INDEX_MODEL, "candidate")
    if candidate is not None and candidate.version not in covered_versions(
        registered.version, models.versions(INDEX_MODEL, VERSIONS)
    ):
        ours, theirs = (models.index_manifest(v).snapshot for v in (registered.version, candidate.version))
        if ours != theirs and started_at(theirs.uri) > started_at(ours.uri):
            log.info("version %s is built on a newer snapshot: the next refresh carries these changes over", candidate.version)
            return False
    propose(models, registered.version)
    return True


def _version(
    models: Registry, plan: RefreshPlan, embedded: EmbeddedChanges, run: Run, folder: Path, photos: int
) -> tuple[IndexManifest, Any]:
    """Builds the version in `folder`: manifest with golden answers, gates and ledger, and the measurements."""
    from serving.index.searcher import Searcher
    from serving.versions.release import Release
    from tasks.catalog.changes.ledger import deleted_products
    from tasks.embed.job import embedding_commit
    from tasks.index.delta_version import ArtifactLocation, next_version, quarantined_keys
    from tasks.index.picture_counts import quarantined_pictures
    from tasks.index.template_store import template_of
    from tasks.index.version_manifest import with_golden
    from tasks.pipelines.index_gates import evaluate_gates
    from tasks.release.gates.end_to_end_eval import MAX_PHOTOS, held_out_queries, of_today
    from tasks.release.gates.reconcile import catalogue_now

    parent = models.index_manifest(plan.parent).model_copy(update={"ranker": plan.ranker})

    def locate(ref: FileRef) -> Path:
        mine = folder / Path(ref.path).relative_to(INDEX_PATH)
        return verify(mine, ref) if ref.run_id == run.run_id else models.file(ref)

    def template() -> Template | None:
        return template_of(models, parent)[0]

    place = ArtifactLocation(folder, run.run_id, INDEX_PATH)
    embedded_now = _embedded(parent, embedded)
    commits = (embedding_commit(embedded.result, parent.encoder.document_fingerprint),) if embedded.result else ()
    changed = changed_rows(plan)
    unusable, now = None, embedded.result
    if parent.counts.pictures is not None or (now is not None and now.catalogue_pictures > now.catalogue):
        unusable = now.quarantined_pictures if now else 0
        unusable -= quarantined_pictures(parent.embeddings, changed["key"].to_numpy())
    manifest, ledger = next_version(
        parent, ledger_of(models, parent), changed, embedded_now, place, locate, template, commits, unusable
    )
    manifest = manifest.model_copy(update={"id": plan.run_key, "created_at": plan.now, "parent": plan.parent})
    golden = np.load(models.file(parent.golden))["vectors"]
    manifest = with_golden(
        manifest, Searcher.open(manifest, locate, endpoint=models.endpoint), golden, folder, run.run_id, INDEX_PATH
    )
    release = Release.open(
        "candidate",
        manifest,
        models.encoder_folder(manifest.encoder.version),
        locate,
        runtime=query_runtime(),
        endpoint=models.endpoint,
    )
    snapshot = read_snapshot(manifest.snapshot.uri)
    queries = of_today(held_out_queries(snapshot, photos or MAX_PHOTOS, deleted_products(ledger)), snapshot, release.searcher)
    read_at = datetime.fromisoformat(plan.now)
    products = product_table(snapshot.uri, ["key"])["key"].to_numpy()
    bad = quarantined_keys(products, base_keys(models, manifest).to_numpy(), ledger)
    decision, candidate = evaluate_gates(models, release, snapshot, queries, read_at, catalogue_now(snapshot, ledger), bad)
    return manifest.model_copy(update={"gates": decision.gates, "queries": candidate.queries}), candidate


def _embedded(parent: IndexManifest, embedded: EmbeddedChanges) -> Any:
    """The plan's embedded upserts as rows and vectors."""
    from tasks.index.delta_version import EmbeddedRows, embedded_rows

    if embedded.result is None:
        return EmbeddedRows(pa.table({"key": pa.array([], pa.int64())}), np.zeros((0, parent.encoder.dim), np.float32))
    return embedded_rows(embedded.result.vectors_uri, embedded.snapshot_uri, parent.shards, parent.encoder.dim)


def _upload(run: Run, manifest: IndexManifest, folder: Path) -> None:
    """Uploads the run's files, the manifest last, so a manifest implies completeness."""
    for ref in (*manifest.files(), *manifest.changes):
        if ref.run_id == run.run_id:
            path = Path(ref.path)
            run.artifact(folder / path.relative_to(INDEX_PATH), str(path.parent))
    gates = json.dumps([g.model_dump() for g in manifest.gates], indent=1)
    for name, content in {"gates.json": gates, "manifest.json": manifest.to_json()}.items():
        with atomic_write(folder / name) as path:
            path.write_text(content, "utf-8")
        run.artifact(folder / name, INDEX_PATH)


def _tags(plan: RefreshPlan, embedded: EmbeddedChanges, manifest: IndexManifest, passed: bool) -> dict[str, str]:
    from tasks.index.delta import compaction_due
    from tasks.release.ancestry import CARRIED, CHANGES, PARENT

    tags = {
        "encoder_version": manifest.encoder.version, "snapshot": manifest.snapshot.id, "verdict": "passed" if passed else "failed",
        "products": str(manifest.counts.servable), "content_key": manifest.content_key, "run_key": plan.run_key,
        PARENT: plan.parent,
    } | index_tags(manifest)  # fmt: skip
    if passed:
        tags |= {CHANGES: str(plan.changes), CARRIED: ",".join(plan.carried)}
    if embedded.pace:
        tags["pace"] = str(embedded.pace)
    if due := compaction_due(manifest.segments):
        tags["compaction_due"] = due
    return {name: value for name, value in tags.items() if value}


def _registered(version: Version) -> RegisteredVersion:
    summary = f"index version {version.version}: {version.summary}"
    return RegisteredVersion(
        version.version, version.tags["verdict"] == "passed", summary, version.tags.get("compaction_due", "")
    )
