"""The step of rebuild_index before embedding: what it will cost, and whether a person has to agree."""

import json
import logging
import os
from datetime import UTC, datetime

from serving.contract.addresses import error_line
from serving.contract.encoder import EncoderFolder
from serving.contract.manifest import EncoderRef
from serving.versions.text_encoder import text_variant
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import ON_GPU, EmbedConfig, worker_config
from tasks.embed.reembedding_plan import (
    EmbeddingPlan,
    Pace,
    PictureCount,
    TitlePlan,
    count_pictures,
    make_plan,
    titles_to_embed,
)
from tasks.embed.run_record import CORES, ENCODER, HOW, IMAGES, PLAN, SECONDS
from tasks.embed.store import EmbeddingStore, encoder_store
from tasks.pipelines.common import embed_config, registry, scratch, settings
from tasks.pipelines.index_draft import EXPERIMENT
from tasks.registry import ENCODER_MODEL, Registry
from tasks.watch.cost import Prices

log = logging.getLogger(__name__)

MOST_SAMPLED = 4096
"""Addresses that a sample is drawn from: enough to leave some out, and few beside those of ten million pictures."""
MEASURED_PICTURES = 500
"""An earlier run of fewer pictures tells more of Spark's start than of the encoder."""


def plan_reembedding(snapshot: Snapshot, encoder: EncoderRef, run_key: str) -> EmbeddingPlan:
    """Counts what the store lacks, and tells hours, cost and bytes; the plan goes to the version's MLflow run and to the board."""
    plan = reembedding_plan(snapshot, encoder, run_key)
    brief = {k: v for k, v in plan.to_json().items() if k != "text"}
    with registry().run(EXPERIMENT, run_key, f"index {snapshot.id}", {PLAN: json.dumps(brief)}):
        pass
    log.info("%s", plan.summary)
    return plan


def replaced_while_waiting(encoder_version: str) -> str:
    """Whether another encoder became champion while a person was asked, as one sentence; "" while it is still this one."""
    now = registry().require_alias(ENCODER_MODEL, "champion").version
    if now == encoder_version:
        return ""
    return (
        f"encoder version {now} became champion before anybody answered for version {encoder_version}; the next run plans for it"
    )


def reembedding_plan(snapshot: Snapshot, encoder: EncoderRef, run_key: str) -> EmbeddingPlan:
    """The plan alone: nothing is stored."""
    chosen = settings()
    store = encoder_store(chosen.store_uri, encoder.name, encoder.version, encoder.document_fingerprint, encoder.dim)
    count = count_pictures(snapshot, chosen.store_uri, store)
    models = registry(chosen)
    config = embed_config(chosen, chosen.shards)
    if count.to_embed:
        pace = recorded_pace(models, encoder, config) or sampled_pace(models, snapshot, encoder, config, count, run_key)
    else:
        pace = Pace(0.0, "nothing to embed")
    prices = Prices(chosen.price_core_hour, chosen.price_gpu_hour)
    titles = plan_titles(models, snapshot, encoder, store) if chosen.text_only else TitlePlan()
    return make_plan(encoder.version, encoder.dim, snapshot.rows, count, pace, prices, chosen.approve_hours, titles)


def plan_titles(models: Registry, snapshot: Snapshot, encoder: EncoderRef, store: EmbeddingStore) -> TitlePlan:
    """Counts the titles that the text tower has to embed, and measures it on some of them; none without a text tower."""
    from tasks.embed.sample_pace import sample_titles

    titles, missing = titles_to_embed(snapshot, store)
    if not missing:
        return TitlePlan(titles)
    encoders = EncoderFolder(models.encoder_folder(encoder.version))
    if not text_variant(encoders.manifest):  # they will be in quarantine
        return TitlePlan()
    return TitlePlan(titles, len(missing), sample_titles(missing, encoders), float(os.cpu_count() or 1))


def how_embedded(config: EmbedConfig) -> str:
    """What the throughput of an encoder depends on here, as one text."""
    return f"{config.runtime} on {config.spark_master}, {config.gpus:g} GPUs a task"


def recorded_pace(models: Registry, encoder: EncoderRef, config: EmbedConfig) -> Pace | None:
    """The throughput of the newest run that embedded enough with this encoder in this way; None without one."""
    tags = {ENCODER: encoder.document_fingerprint, HOW: how_embedded(config)}
    found = models.newest_measured(EXPERIMENT, IMAGES, MEASURED_PICTURES, tags)
    if found is None:
        return None
    images, seconds = found.metrics[IMAGES], found.metrics[SECONDS]
    day = datetime.fromtimestamp(found.at_s, UTC).date()
    source = f"measured over {images:.0f} pictures by run {found.key} on {day}"
    return Pace(images / seconds, source, found.metrics.get(CORES, 1.0), _gpus(config))


def sampled_pace(
    models: Registry, snapshot: Snapshot, encoder: EncoderRef, config: EmbedConfig, count: PictureCount, run_key: str
) -> Pace:
    """The throughput of a short sample on this machine; of a cluster, that of one worker here. 0 where it cannot be measured here."""
    from tasks.embed.sample_pace import local_workers, sample_pace

    workers = local_workers(config.spark_master)
    folder = models.encoder_folder(encoder.version)
    manifest = EncoderFolder(folder).manifest
    uris = count.uris[:: max(len(count.uris) // MOST_SAMPLED, 1)].to_pylist()
    try:
        with scratch(run_key, "sample") as work:
            job = worker_config(snapshot, folder, manifest, "", run_key, "", config)
            rate, pictures = sample_pace(uris, job, workers, work)
    except Exception as error:  # such as a runtime for GPUs on a worker without one; the workers that embed may be others
        return Pace(0.0, f"no run with this encoder has been measured, and no sample here: {error_line(error)}")
    source = f"a sample of {pictures} pictures by {workers} workers on this machine"
    if config.spark_master.startswith("spark://"):
        source += "; a cluster is as many times faster as it has workers"
    return Pace(rate, source, float(workers), _gpus(config))


def _gpus(config: EmbedConfig) -> float:
    return 1.0 if config.gpus or config.runtime in ON_GPU else 0.0
