"""An hour (refresh_index, then promote_index) or a night (rebuild_index, then promote_index) as a process of its own.

It runs the DAGs' steps in their order without Airflow; an attempt with the same run key finds what the one before left.
"""

import dataclasses
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from serving.contract.files import ContractError
from tasks.errors import ServiceAway, VitrineError

FAILED = "FAILED"
FINAL = 2
LEASE_S = 30.0
"""A killed promotion's lease is over after this time; in production after a minute."""


def server() -> ForkServerContext:
    """Where the processes are forked from: one without threads, which imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([
        "mlflow", "mlflow.artifacts", "tasks.pipelines.promote_index", "tasks.pipelines.rebuild_index", "tests.chaos.pipeline", "pytest",
        "faiss", "onnxruntime", "pyarrow.dataset", "pyarrow.parquet", "adbc_driver_postgresql.dbapi", "redis", "PIL.Image",
    ])  # fmt: skip
    return context


def run(environ: Mapping[str, str], story: str, run_key: str, log: str) -> None:
    """All steps of "hour", "night" or "promotion". After a step that failed, which the log's last line names, the process ends with 1,
    or with FINAL where Airflow would not try again by itself."""
    os.environ.update(environ)
    with Path(log).open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    _hasten()
    step = ""
    try:
        for step in STORIES[story](run_key):
            print("did", step, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(f"{FAILED} after {step or 'nothing'}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        sys.exit(FINAL if isinstance(error, VitrineError | ContractError) and not isinstance(error, ServiceAway) else 1)


def _hasten() -> None:
    """Short measurements, a short lease, no Spark, whose JVM takes longer to start than a hundred pictures to embed, and no bound on the
    share of deltas, which in so small a shop are most of it after some hours."""
    import pytest

    from tasks.pipelines import index_gates, promote_index, rebuild_index
    from tasks.release.promotion import lease
    from tests.brief import measure_briefly

    measure_briefly(pytest.MonkeyPatch())
    lease.LASTS_S, lease.MARGIN_S, promote_index.HANDOVER_S = LEASE_S, 5.0, LEASE_S
    config: Callable[..., Any] = rebuild_index.embed_config
    rebuild_index.embed_config = lambda *given: dataclasses.replace(config(*given), direct=5_000)  # type: ignore[assignment]
    policy = index_gates.policy_of
    index_gates.policy_of = lambda chosen: dataclasses.replace(policy(chosen), delta_share=1.0)


def _hour(run_key: str) -> Iterator[str]:
    from tasks.pipelines import drain_changes, refresh_index

    plan = drain_changes.drain(run_key)
    yield "drain_changes"
    if not plan.due:  # a night, or a run that failed later, has these changes already
        yield from _promote("", run_key)
        return
    embedded = refresh_index.embed(plan)
    yield "embed_changes"
    registered = refresh_index.register(plan, embedded)
    yield "register_version"
    yield from _load_features(registered)
    refresh_index.acknowledge(plan, registered, embedded)
    yield "acknowledge"
    refresh_index.publish(registered)
    yield "publish_candidate"
    yield from _promote(registered.version, run_key)


def _night(run_key: str) -> Iterator[str]:
    from tasks.pipelines import common, rebuild_index, refresh_index, register_index, tune_index

    snapshot, encoder = common.take_snapshot(run_key), rebuild_index.choose_encoder()
    yield "take_snapshot"
    embedded = rebuild_index.embed(snapshot, encoder, run_key)
    yield "embed"
    template = rebuild_index.train_template(encoder, embedded, run_key)
    yield "train_template"
    shards = []
    for number in rebuild_index.list_shards(template):
        shards.append(rebuild_index.build_shard(number, snapshot, embedded, template, run_key))
        yield f"build_shard {number}"
    tuned = tune_index.tune(snapshot, encoder, template, shards, run_key)
    yield "tune"
    registered = register_index.register_version(snapshot, encoder, embedded, template, shards, tuned, run_key)
    yield "register_version"
    complete = refresh_index.catch_up(registered, run_key)
    yield "catch_up"
    yield from _load_features(complete)
    register_index.publish(complete.version)
    yield "publish_candidate"
    yield from _promote(complete.version, run_key)


def _load_features(registered: Any) -> Iterator[str]:
    """As in the DAGs nothing waits for it: the promotion loads what is missing."""
    from tasks.pipelines import publish_features

    try:
        publish_features.load(registered)
        yield "load_features"
    except Exception as error:
        print(f"load_features failed: {type(error).__name__}", flush=True)


def _promote(version: str, run_key: str) -> Iterator[str]:
    from tasks.pipelines import promote_index

    promote_index.promote(version, f"promote {run_key}")
    yield "promote"


def _promotion(run_key: str) -> Iterator[str]:
    """promote_index by hand: of the candidate."""
    yield from _promote("", run_key)


STORIES: dict[str, Callable[[str], Iterator[str]]] = {"hour": _hour, "night": _night, "promotion": _promotion}
