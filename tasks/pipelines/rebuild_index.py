"""The steps of rebuild_index up to its shards. Validation, tuning and registration: validate_index, tune_index, register_index."""

import logging
import os
import time
from collections.abc import Callable

from serving.contract.addresses import hide_secrets
from serving.contract.manifest import EncoderRef
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedResult
from tasks.embed.run_record import AT_S, BEFORE, CORES, DONE, ELAPSED_S, ENCODER, HOW, IMAGES, SECONDS
from tasks.embed.store import encoder_store
from tasks.index.build import BuiltShard
from tasks.index.template import Template
from tasks.pipelines.collection_steps import begin_collection, holds_shard, upload_of
from tasks.pipelines.common import embed_config, registry, scratch, settings
from tasks.pipelines.index_draft import EXPERIMENT, content_key_of, index_config
from tasks.pipelines.plan_reembedding import how_embedded
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Run

log = logging.getLogger(__name__)


def choose_encoder() -> EncoderRef:
    """The champion, as the reference that all later steps use."""
    models = registry()
    return models.encoder_ref(models.require_alias(ENCODER_MODEL, "champion").version)


def something_changed(snapshot: Snapshot, encoder: EncoderRef) -> bool:
    """False when the live version was built from the same rows, encoder, index settings, weights and rules."""
    from tasks.index.ranker_config import read_ranker

    models = registry()
    live = models.alias(INDEX_MODEL, "live")
    if live is None:
        return True
    key = content_key_of(snapshot, encoder, read_ranker(settings().ranker))
    same = models.index_manifest(live.version).content_key == key
    log.info(
        "index version %s is live; the catalogue, the encoder and the settings %s",
        live.version,
        "are its own" if same else "differ",
    )
    return not same


def embed(snapshot: Snapshot, encoder: EncoderRef, run_key: str) -> EmbedResult:
    """Embeds what the store lacks; throughput goes to the version's MLflow run: of what this attempt embeds, in its own time."""
    from tasks.embed.job import embed_snapshot

    chosen = settings()
    config = embed_config(chosen, chosen.shards)
    models = registry()
    folder = models.encoder_folder(encoder.version)
    store = encoder_store(chosen.store_uri, encoder.name, encoder.version, encoder.document_fingerprint, encoder.dim)
    before = sum(c.rows for c in store.commits_of(run_key))
    with models.run(EXPERIMENT, run_key, f"index {snapshot.id}") as run, scratch(run_key, "embed") as work:
        began, report = time.monotonic(), progress_report(run)
        made = embed_snapshot(snapshot, folder, encoder.version, chosen.store_uri, run_key, work, config, report)
        if (images := made.embedded_now - before) > 0:
            cores = float(os.cpu_count() or 1)
            run.metrics({IMAGES: images, SECONDS: time.monotonic() - began, CORES: cores})
            run.tag(ENCODER, encoder.document_fingerprint)
            run.tag(HOW, how_embedded(config))
    return made


def progress_report(run: Run) -> Callable[[int, int], None]:
    """Writes progress to a run for the release board; the first report says what earlier attempts did.

    MLflow being away costs the board a figure, not the job its vectors.
    """
    began, before = 0.0, -1

    def report(done: int, total: int) -> None:
        nonlocal began, before
        if before < 0:
            began, before = time.monotonic(), done
        values = {DONE: float(done), BEFORE: float(before), ELAPSED_S: time.monotonic() - began, AT_S: time.time()}
        try:
            run.log_now(values)
        except Exception as error:
            log.warning("%d of %d pictures are embedded; MLflow did not take that: %s", done, total, hide_secrets(str(error)))

    return report


def train_template(encoder: EncoderRef, embedded: EmbedResult, run_key: str) -> Template:
    """The template for all shards: the live version's while encoder and centroids still fit, or a new one, kept in the store."""
    from tasks.index import template as templates
    from tasks.index.template_store import live_template, store_template

    chosen = settings()
    previous, refused = live_template(registry(chosen), encoder.document_fingerprint)
    with scratch(run_key, "template") as folder:
        made = templates.train_template(embedded.vectors_uri, index_config(chosen), folder, previous, refused)
        made = store_template(made, storage.join(chosen.store_uri, "templates"))
    made = begin_collection(made, encoder, embedded, chosen, run_key)
    log.info(
        "index family %s (%s) for %d vectors in %d shards: %s", made.family, made.factory, made.rows, made.shards, made.reason
    )
    return made


def list_shards(template: Template) -> list[int]:
    """The numbers of the shards; one task builds each."""
    return list(range(template.shards))


def build_shard(number: int, snapshot: Snapshot, embedded: EmbedResult, template: Template, run_key: str) -> BuiltShard:
    """Builds one shard and leaves its files in the store, or its vectors in the engine; what an earlier attempt left whole is kept."""
    from tasks.index import build
    from tasks.index.shard_store import store_shard, stored_shard

    name = f"shard-{number:05d}"
    chosen = settings()
    uri = storage.join(chosen.store_uri, "shards", run_key, name)
    stored = stored_shard(uri, embedded.vectors_uri, snapshot.uri, template)
    if stored is not None and holds_shard(stored, template, chosen):
        return stored
    with scratch(run_key, name) as folder:
        upload = upload_of(template, number, chosen)
        return store_shard(build.build_shard(embedded.vectors_uri, snapshot.uri, template, number, folder, upload), uri)
