"""The steps of train_encoder, rebuild_index and promote_index in this process, in the order of the DAGs, without Airflow and Spark."""

from dataclasses import replace

import pytest

from tasks.pipelines import common, preconditions, promote_index, rebuild_index, register_index, train_encoder, tune_index
from tasks.pipelines.encoder_records import ChampionDecision
from tasks.pipelines.index_records import RegisteredVersion
from tasks.registry import ENCODER_MODEL

DIRECT = 5_000
"""So many pictures are embedded without Spark."""


def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets rebuild_index embed in this process: Spark takes longer to start than a small catalogue to embed."""
    config = rebuild_index.embed_config
    monkeypatch.setattr(rebuild_index, "embed_config", lambda chosen, shards: replace(config(chosen, shards), direct=DIRECT))


def make_champion(key: str, **asked: object) -> ChampionDecision:
    """Trains, exports and judges an encoder, and makes it champion whatever the gates say; `asked` is what the form gives."""
    preconditions.check_preconditions(training=True)
    snapshot = common.take_snapshot(f"{key}.train")
    plan = train_encoder.plan(snapshot, dict(asked), key)
    teacher = train_encoder.train_teacher(snapshot, plan, key)
    student = train_encoder.distil_student(snapshot, plan, teacher, key)
    version = train_encoder.export_encoder(snapshot, plan, teacher, student, key)
    decision = train_encoder.judge(snapshot, plan, version, key)
    common.registry().set_alias(ENCODER_MODEL, "champion", version)
    return decision


def make_version(key: str) -> RegisteredVersion:
    """Builds, tunes, judges and registers an index version of the champion, and makes it the candidate."""
    snapshot, encoder = common.take_snapshot(key), rebuild_index.choose_encoder()
    embedded = rebuild_index.embed(snapshot, encoder, key)
    template = rebuild_index.train_template(encoder, embedded, key)
    numbers = rebuild_index.list_shards(template)
    shards = [rebuild_index.build_shard(n, snapshot, embedded, template, key) for n in numbers]
    tuned = tune_index.tune(snapshot, encoder, template, shards, key)
    registered = register_index.register_version(snapshot, encoder, embedded, template, shards, tuned, key)
    register_index.publish(registered.version)
    return registered


def go_live(version: str, key: str) -> None:
    """Promotes a version on the replicas of the settings, without a bake."""
    promote_index.promote(version, key, bake_s=0)
