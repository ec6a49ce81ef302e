"""The whole chain on CeleryExecutor: what one worker leaves for another goes through the store, and nothing through a folder."""

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec

import httpx
import pytest

from tasks import storage
from tasks.catalog.changes.event import upsert
from tasks.catalog.changes.outbox import Outbox
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tests.e2e.celery_stack import PRODUCTS, SECRET, CeleryStack, celery_stack, namespaces
from tests.running import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(find_spec("celery") is None, reason="needs celery in an environment of its own: make e2e-celery"),
    pytest.mark.skipif(not namespaces(), reason="needs unshare (util-linux) to hide one worker's files from the other"),
]

CHAIN = ("train_encoder", "rebuild_index", "promote_index", "refresh_index")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryStack]:
    with celery_stack(tmp_path_factory.mktemp("celery")) as made:
        yield made


def live_everywhere(stack: CeleryStack, version: str) -> bool:
    answer = httpx.get(f"{stack.settings.serving_urls[0]}/v1/version", timeout=5, trust_env=False).json()
    return bool(answer.get("live") and answer["live"]["version"] == version)


def promoted(stack: CeleryStack, version: str) -> set[str]:
    """Waits until the run of promote_index that the candidate started has put it live; the machines that it ran on."""
    until(lambda: live_everywhere(stack, version), f"version {version} is live", 600)
    run_id = stack.airflow.runs("promote_index")[0]["dag_run_id"]
    stack.wait("promote_index", run_id)
    states, machines = stack.done("promote_index", run_id)
    assert "failed" not in states.values(), states
    return machines


def test_two_workers_without_a_common_folder_train_build_and_promote(stack: CeleryStack) -> None:
    until(lambda: set(CHAIN) <= stack.airflow.dags(), "the DAGs are parsed", 300)
    assert stack.airflow.import_errors() == []
    for name in ("worker-a", "worker-b"):
        stack.start_worker(name)
    stack.airflow.call("PATCH", "/dags/train_encoder", json={"is_paused": False})
    run_id, states, machines = stack.finish("train_encoder", preset="tiny")
    assert states["judge"] == "success", states
    assert machines == {"worker-a", "worker-b"}
    version = stack.airflow.result("train_encoder", run_id, "judge")["version"]
    if stack.registry.alias(ENCODER_MODEL, "champion") is None:  # six steps of training need not pass the gates
        stack.registry.set_alias(ENCODER_MODEL, "champion", version)

    for dag in ("promote_index", "rebuild_index"):
        stack.airflow.call("PATCH", f"/dags/{dag}", json={"is_paused": False})
    run_id, states, machines = stack.finish("rebuild_index")
    assert states["publish_candidate"] == "success", states
    assert machines == {"worker-a", "worker-b"}
    made = stack.airflow.result("rebuild_index", run_id, "register_version")["version"]
    assert promoted(stack, made) <= {"worker-a", "worker-b"}
    photo = (stack.settings.home / "shop" / "photos" / "7-2.jpg").read_bytes()
    answer = httpx.post(f"{stack.settings.serving_urls[0]}/v1/search", files={"image": photo}, timeout=30, trust_env=False)
    assert (answer.status_code, answer.json()["version"]["index"]) == (200, made)
    assert answer.json()["results"]


def test_nothing_names_a_workers_folder_and_both_left_no_scratch(stack: CeleryStack) -> None:
    handed_over = stack.handed_over()
    assert len(handed_over) > 50
    for name in ("worker-a", "worker-b"):
        named = f"/{name}/".encode()
        assert not [data[max(0, data.index(named) - 200) : data.index(named) + 100] for data in handed_over if named in data]
        assert (stack.disk(name) / "vitrine" / "work").is_dir()
        assert [p.name for p in (stack.disk(name) / "vitrine" / "work").glob("[!.]*.*")] == []


def test_a_new_worker_with_an_empty_disk_does_the_next_hour(stack: CeleryStack) -> None:
    for name in ("worker-a", "worker-b"):
        stack.kill_worker(name)
    stack.start_worker("worker-c")
    row = {"title": "one more", "brand": "brand 0", "category": "kind 1 > leaf 3", "price": 9.0, "image": "images/3.jpg"}
    source = Outbox.open(stack.settings.catalog, existing=True)
    source.send([upsert("p900", datetime.now(UTC), row)])
    stack.airflow.call("PATCH", "/dags/refresh_index", json={"is_paused": False})
    stack.finish("refresh_index")
    ended = {r["dag_run_id"]: stack.done("refresh_index", r["dag_run_id"]) for r in stack.airflow.runs("refresh_index")}
    # The last hour's own run, which begins as soon as it is not paused any more, may have been first.
    [(run_id, machines)] = [
        (key, hosts) for key, (states, hosts) in ended.items() if states.get("publish_candidate") == "success"
    ]
    assert machines == {"worker-c"}
    made = stack.airflow.result("refresh_index", run_id, "register_version")["version"]
    assert promoted(stack, made) == {"worker-c"}
    assert source.count_waiting() == 0
    source.close()
    manifest = stack.registry.index_manifest(stack.registry.aliases(INDEX_MODEL)["live"])
    similar = httpx.get(f"{stack.settings.serving_urls[0]}/v1/products/p900/similar", timeout=30, trust_env=False)
    assert (similar.status_code, similar.json()["version"]["index"]) == (200, made)
    assert manifest.counts.servable == PRODUCTS + 1


def test_logs_of_dead_workers_are_read_from_the_store_and_hold_no_secret(stack: CeleryStack) -> None:
    run_id = stack.airflow.runs("train_encoder")[-1]["dag_run_id"]
    assert "train photos" in stack.airflow.log("train_encoder", run_id, "plan_training")
    logs = [storage.read_bytes(uri).decode(errors="replace") for uri in storage.list_files("s3://shop/logs", recursive=True)]
    assert len(logs) > 20
    assert not [text for text in logs if SECRET in text]
    assert "airflow.dagrun.duration.success.rebuild_index" in stack.metrics.names
