"""What the shop did with commit 8710f00, as a program that runs in a tree of that commit: it imports nothing of this one.

    cd <tree> && PYTHONPATH=<tree> python -P pipeline_8710f00.py fill <catalogue folder>
    … pipeline_8710f00.py night|hour <run key>

fill: the catalogue into the database of VITRINE_CATALOG with triggers, and the tiny encoder as champion. night and hour: the steps of
its rebuild_index and refresh_index, then its promote_index; the last line is the version.
"""

import dataclasses
import sys
from datetime import timedelta
from pathlib import Path

from tasks.steps import common, draining, featuring, indexing, judging, promoting, refreshing

from tasks.catalog.changes import ledger
from tasks.catalog.changes.capture import install_triggers
from tasks.catalog.load import load_folder
from tasks.registry import ENCODER_MODEL, ENCODER_PATH
from tests.tiny import tiny_encoder


def fill(folder: str) -> None:
    chosen = common.settings()
    load_folder(Path(folder), chosen.catalog_uri)
    install_triggers(chosen.catalog_uri)
    tiny_encoder(chosen.home / "tiny")
    models = common.registry()
    with models.run("encoders", "tiny", "tiny") as run:
        run.artifacts(chosen.home / "tiny", ENCODER_PATH)
        version = models.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, {"verdict": "passed"}, "tiny").version
    models.set_alias(ENCODER_MODEL, "champion", version)


def night(run_key: str) -> None:
    config = indexing.embed_config
    indexing.embed_config = lambda *given: dataclasses.replace(config(*given), direct=5_000)  # without Spark
    snapshot, encoder = common.snapshot(run_key), indexing.choose_encoder()
    embedded = indexing.embed(snapshot, encoder, run_key)
    template = indexing.template(encoder, embedded, run_key)
    shards = [indexing.shard(n, snapshot, embedded, template, run_key) for n in indexing.shard_numbers(template)]
    tuned = indexing.tune(snapshot, encoder, template, shards, run_key)
    registered = refreshing.catch_up(indexing.register(snapshot, encoder, embedded, shards, tuned, run_key), run_key)
    if not registered["passed"]:
        sys.exit(registered["summary"])
    featuring.load(registered)
    indexing.publish(registered)
    promote(registered["version"], run_key)


def hour(run_key: str) -> None:
    plan = draining.drain(run_key)
    if not plan["due"]:
        print(plan["summary"])
        return
    registered = refreshing.register(plan, refreshing.embed(plan))
    featuring.load(registered)
    refreshing.acknowledge(plan, registered)
    refreshing.refuse(registered)
    refreshing.publish(registered)
    promote(registered["version"], run_key)


def promote(version: str, run_key: str) -> None:
    print(promoting.promote(version, f"promote {run_key}")["summary"])
    print(version)


if __name__ == "__main__":
    ledger.SKEW = timedelta(0)  # what arrived shortly before a snapshot is carried over; all of a rehearsal is shortly before
    policy = judging.policy_of
    judging.policy_of = lambda chosen: dataclasses.replace(policy(chosen), quarantined=0.1)  # no setting then
    {"fill": fill, "night": night, "hour": hour}[sys.argv[1]](sys.argv[2])
