"""The steps of rebuild_index."""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.contract.files import FileRef, atomic_write, verify
from serving.contract.manifest import EncoderRef, IndexManifest
from tasks import storage
from tasks.errors import ValidationFailed, VitrineError
from tasks.index.template_store import TEMPLATE_FILE
from tasks.pipelines.common import as_snapshot, embed_config, query_runtime, registry, settings, work_folder
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, INDEX_PATH, Registry
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.release.gates.evaluate import TruthOf
    from tasks.validate.expectations import Validation

log = logging.getLogger(__name__)

EXPERIMENT = "indexes"


def choose_encoder() -> dict[str, Any]:
    """The champion, as the reference that all later steps use."""
    models = registry()
    return models.encoder_ref(models.require_alias(ENCODER_MODEL, "champion").version).model_dump()


def something_changed(snapshot: dict, encoder: dict) -> bool:
    """False when the live version was built from the same rows, encoder, index settings, weights and rules."""
    from tasks.index.ranking import read_ranker

    models = registry()
    live = models.alias(INDEX_MODEL, "live")
    if live is None:
        return True
    same = models.index_manifest(live.version).content_key == _content_key(snapshot, encoder, read_ranker(settings().ranker))
    log.info(
        "index version %s is live; the catalogue, the encoder and the settings %s",
        live.version,
        "are its own" if same else "differ",
    )
    return not same


def validate_snapshot(snapshot: dict, run_key: str) -> dict[str, Any]:
    """Great Expectations on the snapshot, compared with the live version's if that has the same source."""
    from tasks.catalog.snapshot import read_snapshot
    from tasks.validate.snapshot import SnapshotLimits, check_snapshot

    models, chosen = registry(), settings()
    live = models.alias(INDEX_MODEL, "live")
    previous = None
    if live is not None:
        uri = models.index_manifest(live.version).snapshot.uri
        previous = read_snapshot(uri) if storage.exists(storage.join(uri, "_manifest.json")) else None
        if previous is not None and previous.source != snapshot["source"]:
            previous = None
    limits = SnapshotLimits.from_settings(chosen)
    docs = work_folder(run_key) / "data_docs" / "snapshot"
    return publish_data_docs(models, run_key, snapshot["id"], check_snapshot(as_snapshot(snapshot), previous, docs, limits))


def embed(snapshot: dict, encoder: dict, run_key: str) -> dict[str, Any]:
    from tasks.embed.job import embed_snapshot

    chosen = settings()
    config = embed_config(chosen, chosen.shards)
    models = registry()
    folder = models.encoder_folder(encoder["version"])
    work = work_folder(run_key) / "embed"
    with models.run(EXPERIMENT, run_key, f"index {snapshot['id']}") as run:
        began = time.monotonic()
        made = embed_snapshot(as_snapshot(snapshot), folder, encoder["version"], chosen.store_uri, run_key, work, config)
        if made.embedded_now:
            cores = float(os.cpu_count() or 1)
            run.metrics({"embed.images": made.embedded_now, "embed.seconds": time.monotonic() - began, "embed.cores": cores})
    return dataclasses.asdict(made)


def validate_embeddings(snapshot: dict, embedded: dict, run_key: str) -> dict[str, Any]:
    """Great Expectations on the vectors, compared with the live version's, and on the shard inputs."""
    from tasks.embed.job import EmbedResult
    from tasks.validate.drift_statistics import read_moments, write_moments
    from tasks.validate.embeddings import EmbeddingLimits, check_embeddings, check_index_inputs, inspect

    models, chosen = registry(), settings()
    made, whole = EmbedResult(**embedded), as_snapshot(snapshot)
    found = inspect(made, whole, made.store_uri)  # the store's folder is named by the encoder's fingerprint
    write_moments(made.vectors_uri, found.moments)
    before = read_moments(storage.join(chosen.store_uri, "vectors", _live_run(models)))
    folder = work_folder(run_key) / "data_docs"
    limits = EmbeddingLimits(
        most_quarantined=chosen.most_quarantined, most_duplicates=chosen.max_duplicates, most_mean_shift=chosen.max_mean_shift,
        most_covariance_shift=chosen.most_drift,
    )  # fmt: skip
    vectors = check_embeddings(found, made, whole, before, folder / "embeddings", limits)
    inputs = check_index_inputs(found, made, whole, folder / "index_inputs")
    return publish_data_docs(models, run_key, snapshot["id"], vectors, inputs) | {"note": made.note()}


def publish_data_docs(models: Registry, run_key: str, snapshot_id: str, *validations: "Validation") -> dict[str, Any]:
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
    return {"checked": {v.name: v.checked for v in validations}, "links": links}


def _live_run(models: Registry) -> str:
    """Key of the run that built the live version's base, "none" without one."""
    live = models.alias(INDEX_MODEL, "live")
    if live is None:
        return "none"
    bases = [s for s in models.index_manifest(live.version).segments if s.kind == "base"]
    return (models.run_key(bases[0].table.run_id) if bases else "") or "none"


def template(encoder: dict, embedded: dict, run_key: str) -> dict[str, Any]:
    """The template for all shards: the live version's while encoder and centroids still fit, or a new one."""
    from tasks.index.build import train_template
    from tasks.index.template_store import live_template, store_template

    chosen, folder = settings(), work_folder(run_key) / "index"
    previous, refused = live_template(registry(chosen), encoder["document_fingerprint"], folder / "previous")
    made = train_template(embedded["vectors_uri"], _config(chosen), folder, previous, refused)
    store_template(made, encoder["document_fingerprint"], storage.join(chosen.store_uri, "templates"), folder)
    log.info(
        "index family %s (%s) for %d vectors in %d shards: %s", made.family, made.factory, made.rows, made.shards, made.reason
    )
    return dataclasses.asdict(made)


def shard_numbers(template: dict) -> list[int]:
    return list(range(template["shards"]))


def shard(number: int, snapshot: dict, embedded: dict, template: dict, run_key: str) -> dict[str, Any]:
    from tasks.index.build import Template, build_shard

    folder = work_folder(run_key) / "index" / f"shard-{number:05d}"
    built = build_shard(embedded["vectors_uri"], snapshot["uri"], Template(**template), number, folder)
    return dataclasses.asdict(built)


def tune(snapshot: dict, encoder: dict, template: dict, shards: list[dict], run_key: str) -> dict[str, Any]:
    """Search parameters, tuned on held-out photos through the serving code."""
    from serving.contract.encoder import EncoderFolder
    from serving.index.searcher import Searcher
    from tasks.index.tune import TuningRefused
    from tasks.index.tune import tune as choose
    from tasks.release.gates.end_to_end_eval import held_out_queries, query_vectors

    whole = as_snapshot(snapshot)
    queries = held_out_queries(whole)
    if len(queries) < settings().min_held_out:
        raise VitrineError(
            f"{len(queries)} labelled photos are held out (split val or test), at least {settings().min_held_out} are needed: "
            "VITRINE_MIN_HELD_OUT; recall is measured on shoppers' photos, add some to the catalogue's photos"
            f"{whole.orphans and f'; {whole.orphans}'}"
        )
    folder = EncoderFolder(registry().encoder_folder(encoder["version"]))
    xq = query_vectors(folder, encoder["query"], whole, queries, query_runtime())
    manifest = _draft(snapshot, encoder, None, shards, {"family": template["family"]}, run_key)
    searcher = Searcher.open(manifest, _locate(shards, run_key))
    chosen = settings()
    truth = _truth_of(snapshot, encoder, template["vectors_uri"], template["shards"])(xq)
    try:
        tuned, refusal = choose(searcher, xq, template["family"], chosen.recall_target, truth, _config(chosen).budget), None
    except TuningRefused as error:
        tuned, refusal = error.tuned, error
    tuned = dataclasses.replace(tuned, families=template["families"])
    for trial in tuned.trials:
        log.info("%s recall@10 %.3f p50 %.2f ms: %s", trial["params"], trial["recall_at_10"], trial["p50_ms"], trial["verdict"])
    _report(tuned, template, snapshot, run_key, chosen.recall_target)
    if refusal is not None:
        raise refusal
    return dataclasses.asdict(tuned)


def _truth_of(snapshot: dict, encoder: dict, vectors_uri: str, shards: int) -> "TruthOf":
    """A function from queries to their exact neighbours, sharing the cache with tuning."""
    from tasks.index.truth import exact_truth

    place = storage.join(settings().store_uri, "truth")
    content = f"{snapshot['content_sha256']} {encoder['document_fingerprint']}"
    return lambda xq: exact_truth(vectors_uri, shards, xq, place, content)


def _report(tuned: Any, template: dict, snapshot: dict, run_key: str, target: float) -> None:
    """Records the tuning table and plot (also of a refusal) and the chosen point's metrics in the version's run."""
    from tasks.index.tuning_report import tuning_plot, tuning_table

    folder = work_folder(run_key) / "tuning"
    folder.mkdir(exist_ok=True)
    (folder / "tuning.md").write_text(tuning_table(tuned))
    if tuned.trials:
        tuning_plot(tuned, folder / "tuning.png", target)
    names = ("recall_at_10", "within_candidates", "p50_ms", "p99_ms", "qps")
    with registry().run(EXPERIMENT, run_key, f"index {snapshot['id']}") as run:
        run.artifacts(folder, "tuning")
        if not tuned.refused:
            run.metrics({f"tuned.{name}": tuned.chosen[name] for name in names})
        run.metrics({"tuned.index_mb": tuned.memory_bytes / 2**20})
        run.params({"factory": template["factory"], "template": template["reason"]})


def register(snapshot: dict, encoder: dict, embedded: dict, shards: list[dict], tuned: dict, run_key: str) -> dict[str, Any]:
    """Assembles the version, evaluates it end to end against the live version, and registers it with its gate report."""
    from serving.index.searcher import Searcher
    from serving.versions.release import Release
    from tasks.catalog.snapshot import started_at
    from tasks.embed.job import EmbedResult
    from tasks.index.assemble import with_golden
    from tasks.pipelines.index_gates import judge
    from tasks.release.gates.end_to_end_eval import held_out_queries, query_vectors

    models, whole = registry(), as_snapshot(snapshot)
    queries = held_out_queries(whole)
    encoder_folder = models.encoder_folder(encoder["version"])
    folder = work_folder(run_key) / "index"
    with models.run(EXPERIMENT, run_key, f"index {snapshot['id']}") as run:
        locate = _locate(shards, run_key)
        manifest = _draft(snapshot, encoder, embedded, shards, tuned["search"], run_key, run.run_id)
        from serving.contract.encoder import EncoderFolder

        golden = query_vectors(EncoderFolder(encoder_folder), encoder["query"], whole, queries[:64], query_runtime())
        manifest = with_golden(manifest, Searcher.open(manifest, locate), golden, folder, run.run_id, INDEX_PATH)
        release = Release.open("candidate", manifest, encoder_folder, locate, runtime=query_runtime())
        bad = storage.read_table(embedded["quarantine_uri"], ["key"])["key"].to_numpy()
        truth_of = _truth_of(snapshot, encoder, embedded["vectors_uri"], len(shards))
        decision, candidate = judge(models, release, whole, queries, started_at(whole.uri), quarantined=bad, truth_of=truth_of)
        gates = decision.gates
        manifest = manifest.model_copy(update={"gates": gates})
        _publish(run, manifest, gates, tuned, shards, folder)
        run.params({"snapshot": snapshot["id"], "encoder_version": encoder["version"], "family": tuned["search"]["family"]})
        run.metrics({g.name: g.value for g in gates})
        run.metrics({"recall_at_1": candidate.recall_at_1, "recall_at_10": candidate.recall_at_10, "p50_ms": candidate.p50_ms})
        tags = {
            "encoder_version": encoder["version"], "snapshot": snapshot["id"], "verdict": "passed" if decision.passed else "failed",
            "products": str(manifest.counts.servable), "content_key": manifest.content_key, "run_key": run_key,
        }  # fmt: skip
        note = EmbedResult(**embedded).note()
        text = (
            f"{manifest.counts.servable} products, {len(shards)} shards of {tuned['search']['family']}, encoder version "
            f"{encoder['version']}: Recall@1 {candidate.recall_at_1:.3f}, Recall@10 {candidate.recall_at_10:.3f} on "
            f"{candidate.photos} held-out photos; {'; '.join(p for p in (note, whole.orphans, decision.summary) if p)}"
        )
        version = models.register(INDEX_MODEL, run.run_id, INDEX_PATH, tags, text).version
    return {"version": version, "passed": decision.passed, "summary": f"index version {version}: {text}"}


def publish(registered: dict) -> None:
    registry().set_alias(INDEX_MODEL, "candidate", registered["version"])


def _publish(run: Any, manifest: IndexManifest, gates: Any, tuned: dict, shards: list[dict], folder: Path) -> None:
    """Uploads the run's artifacts: segments first, the manifest last, so a manifest implies completeness."""
    for built in shards:
        for part in (built["index"], built["table"]):
            run.artifact(Path(built["folder"]) / part["path"], INDEX_PATH)
    for name in ("golden.npz", TEMPLATE_FILE):
        run.artifact(folder / name, INDEX_PATH)
    for name, content in {
        "gates.json": json.dumps([g.model_dump() for g in gates], indent=1),
        "tuning.json": json.dumps(tuned, indent=1),
        "manifest.json": manifest.model_dump_json(indent=1),
    }.items():
        with atomic_write(folder / name) as path:
            path.write_text(content)
        run.artifact(folder / name, INDEX_PATH)


def _draft(
    snapshot: dict, encoder: dict, embedded: dict | None, shards: list[dict], search: dict, run_key: str, run_id: str = ""
) -> IndexManifest:
    from tasks.embed.job import EmbedResult
    from tasks.index.assemble import base_segment, draft_manifest
    from tasks.index.build import BuiltShard
    from tasks.index.ranking import read_ranker

    whole = as_snapshot(snapshot)
    segments = [base_segment(BuiltShard(**s), run_id, INDEX_PATH) for s in shards]
    rows = sum(s.rows for s in segments)
    counted = EmbedResult(**embedded) if embedded else EmbedResult(run_key, "", "", "", 0, 0, rows, rows, 0, 0, 0, {})
    created = datetime.now(UTC).isoformat(timespec="seconds")
    reference = EncoderRef.model_validate(encoder)
    ranker = read_ranker(settings().ranker)
    key = _content_key(snapshot, encoder, ranker)
    return draft_manifest(run_key, created, reference, whole, segments, search, ranker, counted, len(shards), key)


def _locate(shards: list[dict], run_key: str) -> Callable[[FileRef], Path]:
    """Locates a built shard's files and the golden answers in this run's folder; verified."""
    folders = {part["path"]: Path(s["folder"]) for s in shards for part in (s["index"], s["table"])}
    home = work_folder(run_key) / "index"

    def locate(ref: FileRef) -> Path:
        name = Path(ref.path).name
        return verify(folders.get(name, home) / name, ref)

    return locate


def _content_key(snapshot: dict, encoder: dict, ranker: dict[str, Any]) -> str:
    from tasks.index.assemble import content_key

    prints = (encoder["document_fingerprint"], encoder["query_fingerprint"])
    return content_key(snapshot["content_sha256"], *prints, _config(settings()), ranker)


def _config(chosen: Settings) -> Any:
    from tasks.index.build import IndexConfig
    from tasks.index.choice import Budget

    budget = Budget(
        ram_bytes=chosen.index_ram_mb * 2**20 or math.inf,
        p99_ms=chosen.index_p99_ms or math.inf,
        build_s=chosen.index_build_s or math.inf,
        clients=chosen.index_clients,
    )
    return IndexConfig(shards=chosen.shards, family=chosen.index_family, recall_target=chosen.recall_target, budget=budget)
