"""docs/operate/backup.md step by step, without containers: a backup while everything works, everything deleted, everything restored."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tasks.catalog.changes.outbox import Outbox
from tasks.registry import INDEX_MODEL
from tests.chaos.drill import CLIENTS, RATE
from tests.chaos.shop import Shop
from tests.chaos.stack import DISK_MB, Stack, Variant, started, wait_for_mlflow
from tests.e2e.rehearsing import MARKS, Rehearsal
from tests.load import Load
from tests.running import until

pytestmark = MARKS


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    with started(Variant(two_replicas=True, mlflow_in_postgres=True)) as stack:
        yield Rehearsal(stack, Shop(stack))


def test_everything_is_deleted_and_restored_and_the_next_hour_goes_on(
    rehearsal: Rehearsal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, shop = rehearsal.stack, rehearsal.shop
    shop.open()
    rehearsal.night("night")
    shop.change()
    live = rehearsal.hour("hour")
    aliases, versions = stack.direct.aliases(INDEX_MODEL), stack.direct.versions(INDEX_MODEL)
    shop.change()  # waits in the queue
    with Load(stack.url, shop.searches(), CLIENTS, 3600.0, RATE) as load:
        (tmp_path / "databases.sql").write_text(stack.database.dump())
        rehearsal.hour("hour-in-the-middle-of-the-backup")
        copy_objects(stack, tmp_path / "objects")
        shots = load.stop()
    assert shots.failed == 0

    delete_everything(stack)
    assert stack.live() == ["", ""]

    stack.start("s3")
    stack.database.restore(tmp_path / "databases.sql")
    restore_objects(stack, tmp_path / "objects")
    for name in stack.services:
        stack.start(name)
    wait_for_mlflow(stack.direct)
    until(lambda: stack.live() == [live] * 2, f"version {live} is live on both replicas", 240)
    assert stack.direct.aliases(INDEX_MODEL) == aliases
    assert stack.direct.versions(INDEX_MODEL) == versions
    rehearsal.same_answers(live)
    for command in ("index list", "index check live", "release show", "changes waiting"):
        rehearsal.command(*command.split())
    assert count_waiting(stack) == 3
    after = rehearsal.hour("hour-after")
    assert stack.direct.index_manifest(after).parent == live
    assert count_waiting(stack) == 0
    shop.change()
    rehearsal.night("night-after")
    with capsys.disabled():
        print(f"\n{len(shots.status)} searches during the backup, {shots.failed} failed; {len(versions)} versions restored")


def copy_objects(stack: Stack, target: Path) -> None:
    client = boto3.client("s3", endpoint_url=stack.s3)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="shop"):
        for found in page["Contents"]:
            if found["Key"].endswith("/"):  # an empty object that stands for a folder
                continue
            path = target / found["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file("shop", found["Key"], str(path))
    client.close()


def restore_objects(stack: Stack, source: Path) -> None:
    client = boto3.client("s3", endpoint_url=stack.s3)
    client.create_bucket(Bucket="shop")
    for path in source.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "shop", str(path.relative_to(source)))
    client.close()


def delete_everything(stack: Stack) -> None:
    """Servers, databases, objects (moto holds them in memory), and the disks of MLflow, the worker and the replicas."""
    for name in stack.services:
        stack.supervisor.stop(name)
    stack.database.delete()
    for name in ("mlflow", "worker", "serving-1", "serving-2"):
        shutil.rmtree(stack.folder / name, ignore_errors=True)
    shutil.rmtree(stack.direct.cache)
    for name in DISK_MB:
        (stack.folder / name).mkdir()


def count_waiting(stack: Stack) -> int:
    outbox = Outbox.open(stack.catalog, existing=True)
    try:
        return outbox.count_waiting()
    finally:
        outbox.close()
