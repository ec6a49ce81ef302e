"""The real Airflow, MLflow and a replica: rebuild and promote, with tasks killed in the middle.

The encoder is the tiny one, registered by hand: what is tried here is the pipeline, not the training.
"""

import os
import signal

import httpx
import psutil
import pytest

from tasks import storage
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tests.e2e.stack import PRODUCTS, Stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def kill_running_task(stack: Stack, run_id: str, task: str) -> None:
    """SIGKILLs the process that works on a task of rebuild_index, as soon as the task runs."""

    def running() -> bool:
        return any(t.task == task and t.state == "running" for t in stack.airflow.tasks("rebuild_index", run_id))

    until(running, f"{task} runs")
    root = stack.supervisor._record("airflow")
    assert root is not None
    until(lambda: _task_processes(root["pid"]) != [], "the task has a process")
    for process in _task_processes(root["pid"]):
        os.kill(process.pid, signal.SIGKILL)


def _task_processes(root: int) -> list[psutil.Process]:
    """The processes that execute task code: titled "airflow worker -- <id>", unlike the executor's own workers."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("airflow worker -- ") and "LocalExecutor" not in title:
            found.append(process)
    return found


def segments(stack: Stack, version: str) -> list[tuple]:
    manifest = stack.registry.index_manifest(version)
    return [(s.shard, s.rows, s.index.sha256 if s.index else "", s.table.sha256) for s in manifest.segments]


def test_a_killed_task_is_run_again_and_the_version_is_the_same(stack: Stack) -> None:
    run_id = stack.airflow.trigger("rebuild_index")
    kill_running_task(stack, run_id, "embed")
    kill_running_task(stack, run_id, "build_shard")
    _clear_failed(stack, run_id)
    assert stack.finished("rebuild_index", run_id) == "success"
    killed = stack.airflow.result("rebuild_index", run_id, "register_version")["version"]
    embedded = stack.airflow.result("rebuild_index", run_id, "embed")
    assert (embedded["catalogue"], embedded["embedded"], embedded["quarantined"]) == (PRODUCTS, PRODUCTS, 0)

    stack.goes_live(killed)
    answer = httpx.post(
        f"{stack.settings.serving_urls[0]}/v1/search",
        files={"image": (stack.settings.home / "shop" / "photos" / "7-2.jpg").read_bytes()},
        trust_env=False,
    ).json()
    assert answer["results"][0]["product_id"] == "p007"
    assert answer["version"]["index"] == killed
    assert stack.registry.index_manifest(killed).ranker == {"weights": {"popularity": 0.01}}

    assert len(storage.list_files(storage.join(stack.settings.store_uri, "truth"))) == 1, (
        "tuning and gates ask for the same truth"
    )

    # The same catalogue and encoder again, without a kill: a copy of the whole stack's input in another store.
    from tasks.catalog.snapshot import take_snapshot
    from tasks.embed.job import EmbedConfig, embed_snapshot
    from tasks.index.build import build_shard
    from tasks.index.choice import IndexConfig
    from tasks.index.template import train_template

    other = stack.settings.home / "undisturbed"
    snapshot = take_snapshot(stack.settings.catalog_uri, str(other / "snapshots"), "again")
    config = EmbedConfig(shards=stack.settings.shards)
    version = stack.registry.require_alias(ENCODER_MODEL, "champion").version
    folder = stack.registry.encoder_folder(version)
    vectors = embed_snapshot(snapshot, folder, version, str(other), "again", other / "work", config).vectors_uri
    template = train_template(vectors, IndexConfig(shards=stack.settings.shards), other)
    built = [build_shard(vectors, snapshot.uri, template, n, other / f"shard-{n}") for n in range(stack.settings.shards)]
    assert segments(stack, killed) == [(b.shard, b.rows, b.index.sha256, b.table.sha256) for b in built]


def test_an_unchanged_catalogue_builds_nothing(stack: Stack) -> None:
    before = [v.version for v in stack.registry.versions(INDEX_MODEL)]
    run_id = stack.airflow.trigger("rebuild_index")
    assert stack.finished("rebuild_index", run_id) == "success"
    states = {t.task: t.state for t in stack.airflow.tasks("rebuild_index", run_id)}
    assert states["something_changed"] == "success"
    assert states["embed"] == states["publish_candidate"] == "skipped"
    assert [v.version for v in stack.registry.versions(INDEX_MODEL)] == before


def test_a_restarted_replica_serves_the_same_version(stack: Stack) -> None:
    live = stack.serving()
    serving = next(s for s in stack.services if s.name == "serving")
    assert stack.supervisor.stop("serving")
    stack.supervisor.start(serving)
    stack.supervisor.wait(serving)
    until(lambda: stack.serving() == live, "the replica serves again")


def _clear_failed(stack: Stack, run_id: str) -> None:
    """What a person does in the UI when a task's retries are used up; a task that retries by itself needs none."""
    failed = [t.task for t in stack.airflow.tasks("rebuild_index", run_id) if t.state == "failed"]
    if failed:
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": failed, "only_failed": True, "include_downstream": True}
        stack.airflow.call("POST", "/dags/rebuild_index/clearTaskInstances", json=body)
