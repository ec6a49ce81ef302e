"""The last steps of rebuild_index: the version is assembled, evaluated, registered and published."""

import json
from pathlib import Path

from serving.contract.files import atomic_write
from serving.contract.manifest import EncoderRef, IndexManifest
from tasks.catalog.snapshot import Snapshot, started_at
from tasks.embed.job import EmbedResult
from tasks.index.build import BuiltShard
from tasks.index.template import Template
from tasks.index.template_store import TEMPLATE_FILE, template_json
from tasks.index.tune import TuningResult
from tasks.pipelines.common import query_runtime, registry, scratch, settings
from tasks.pipelines.index_draft import EXPERIMENT, draft, truth_of
from tasks.pipelines.index_records import RegisteredVersion
from tasks.queries.query_words import describe
from tasks.registry import INDEX_MODEL, INDEX_PATH, Run, Version
from tasks.registry.binding import index_tags, signed, signing_key
from tasks.release.promotion.proposal import propose


def register_version(
    snapshot: Snapshot, encoder: EncoderRef, embedded: EmbedResult, template: Template, shards: list[BuiltShard],
    tuned: TuningResult, run_key: str,
) -> RegisteredVersion:  # fmt: skip
    """Assembles the version, evaluates it end to end against the live version, and registers it with its gate report."""
    from serving.contract.encoder import EncoderFolder
    from serving.index.searcher import Searcher
    from serving.versions.release import Release
    from tasks.embed.quarantine import quarantined_keys
    from tasks.index.shard_store import locate_shards
    from tasks.index.version_manifest import with_golden
    from tasks.pipelines.index_gates import evaluate_gates
    from tasks.pipelines.index_page import headline_metrics, index_page
    from tasks.release.gates.end_to_end_eval import held_out_queries, query_vectors

    models, runtime = registry(), query_runtime()
    made = next((v for v in models.versions(INDEX_MODEL) if v.tags.get("run_key") == run_key), None)
    if made is not None:  # a version is bound to the manifest it was registered with, so it is not made anew
        return _registered(made)
    queries = held_out_queries(snapshot)
    encoder_folder = models.encoder_folder(encoder.version)
    with models.run(EXPERIMENT, run_key, f"index {snapshot.id}") as run, scratch(run_key, "register") as folder:
        locate = locate_shards(shards, folder)
        manifest = draft(snapshot, encoder, shards, tuned.search, run_key, embedded, run.run_id)
        golden = query_vectors(EncoderFolder(encoder_folder), encoder.query, snapshot, queries[:64], runtime)
        manifest = with_golden(
            manifest, Searcher.open(manifest, locate, endpoint=models.endpoint), golden, folder, run.run_id, INDEX_PATH
        )
        release = Release.open("candidate", manifest, encoder_folder, locate, runtime=runtime, endpoint=models.endpoint)
        bad = quarantined_keys(embedded.quarantine_uri)
        truth = truth_of(snapshot, encoder, embedded.vectors_uri, len(shards))
        decision, candidate = evaluate_gates(
            models, release, snapshot, queries, started_at(snapshot.uri), quarantined=bad, truth_of=truth
        )
        manifest = manifest.model_copy(update={"gates": decision.gates, "queries": candidate.queries})
        manifest = signed(manifest, signing_key(settings()))
        for built in shards:
            for ref in built.files:
                run.artifact(locate(ref), INDEX_PATH)
        _upload(run, manifest, tuned, template_json(template, encoder.document_fingerprint), folder)
        family = str(tuned.search["family"])
        run.params({"snapshot": snapshot.id, "encoder_version": encoder.version, "family": family})
        run.metrics(headline_metrics(candidate))
        tags = {
            "encoder_version": encoder.version, "snapshot": snapshot.id, "verdict": "passed" if decision.passed else "failed",
            "products": str(manifest.counts.servable), "content_key": manifest.content_key, "run_key": run_key,
        } | index_tags(manifest)  # fmt: skip
        text = (
            f"{manifest.counts.servable} products, {len(shards)} shards of {family}, encoder version {encoder.version}: "
            f"Recall@1 {candidate.recall_at_1:.3f}, Recall@10 {candidate.recall_at_10:.3f} on {describe(candidate.queries)}; "
            + "; ".join(part for part in (embedded.note(), snapshot.orphans, decision.summary) if part)
        )
        artifacts = {"Tuning": "tuning/tuning.md", "Data docs": "data_docs"}
        page = index_page(models, run.run_id, text, candidate, decision.gates, artifacts)
        return _registered(models.register(INDEX_MODEL, run.run_id, INDEX_PATH, tags, page))


def _registered(version: Version) -> RegisteredVersion:
    passed = version.tags["verdict"] == "passed"
    return RegisteredVersion(version.version, passed, f"index version {version.version}: {version.summary}")


def publish(version: str) -> None:
    """Makes the version the candidate; the one before is marked as superseded unless it was live."""
    propose(registry(), version)


def _upload(run: Run, manifest: IndexManifest, tuned: TuningResult, template: str, folder: Path) -> None:
    """Uploads what belongs to the segments, the manifest last, so that a manifest implies completeness."""
    run.artifact(folder / "golden.npz", INDEX_PATH)
    for name, content in {
        TEMPLATE_FILE: template,
        "gates.json": json.dumps([g.model_dump() for g in manifest.gates], indent=1),
        "tuning.json": json.dumps(tuned.to_json(), indent=1),
        "manifest.json": manifest.to_json(),
    }.items():
        with atomic_write(folder / name) as path:
            path.write_text(content, "utf-8")
        run.artifact(folder / name, INDEX_PATH)
