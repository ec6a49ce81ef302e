"""Collecting garbage over a real registry: what a kept version reaches is never deleted, all else is."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from serving.contract.manifest import IndexManifest
from serving.contract.provenance import EmbeddingCommit
from serving.index.searcher import Searcher
from tasks.catalog.changes.event import delete
from tasks.catalog.changes.ledger import entries
from tasks.catalog.snapshot import product_table
from tasks.errors import VitrineError
from tasks.index.delta_version import ArtifactLocation, EmbeddedRows, mark_membership, next_version
from tasks.index.engine_collections import CollectionRecord, record_collection, recorded_collections
from tasks.index.verify_version import check_index
from tasks.index.version_manifest import with_golden
from tasks.pipelines.drain_changes import ledger_of
from tasks.progress import Progress
from tasks.queries.view_store import renew_view, view_exists, view_uri, write_view, write_view_table
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry
from tasks.release.promotion.blue_green import choose_slot, flip, warm
from tasks.release.retention import garbage
from tasks.release.retention.garbage import GarbageItem, _renewed, collect, plan_garbage, unreachable_files
from tasks.release.retention.policy import Retention, kept_versions
from tests.catalog.changes.refreshed import own_mlflow
from tests.registered import Shop, good_gates
from tests.running import until

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
KEEP = Retention(versions=2, grace_s=0.0)


@pytest.fixture
def shop(tmp_path: Path, mlflow_tables: Path) -> Shop:
    """A registry in a file of its own, so that nothing else's versions are collected."""
    return Shop(tmp_path, Registry(own_mlflow(tmp_path, mlflow_tables), tmp_path / "cache"))


@contextmanager
def alone_here() -> Iterator[Callable[[], None]]:
    """For where nobody promotes."""
    yield lambda: None


def delta(shop: Shop, parent: str, gone: int) -> str:
    """A version that hides one product of its parent; everything else it takes over."""
    manifest = shop.registry.index_manifest(parent)
    shop.built += 1
    folder = shop.home / "work" / f"delta-{shop.built}"
    folder.mkdir(parents=True)
    products = product_table(manifest.snapshot.uri, ["key", "product_id"])
    now = datetime.now(UTC)
    changed = entries([delete(products["product_id"][gone].as_py(), now)], now)
    changed = mark_membership(changed, products, products["key"].combine_chunks())
    none = EmbeddedRows(products.slice(0, 0), np.zeros((0, manifest.encoder.dim), np.float32))
    with shop.registry.run("indexes", f"delta-{shop.built}", f"delta of {parent}") as run:

        def locate(ref):
            return folder / Path(ref.path).name if ref.run_id == run.run_id else shop.registry.file(ref)

        place = ArtifactLocation(folder, run.run_id, INDEX_PATH)
        made, _ = next_version(manifest, ledger_of(shop.registry, manifest), changed, none, place, locate)
        made = made.model_copy(update={"id": f"delta-{shop.built}", "parent": parent})
        searcher = Searcher.open(made, locate)
        vectors = np.stack([searcher.vector(row) for row in range(4)])
        made = with_golden(made, searcher, vectors, folder, run.run_id, INDEX_PATH)
        (folder / "manifest.json").write_text(made.model_dump_json())
        run.artifacts(folder, INDEX_PATH)
        tags = {"verdict": "passed", "run_key": f"delta-{shop.built}"}
        return shop.registry.register(INDEX_MODEL, run.run_id, INDEX_PATH, tags, "a delta").version


def whole(shop: Shop, version: str) -> list[str]:
    """What the verifier finds wrong with a version whose files are fetched afresh."""
    fresh = Registry(shop.registry.uri, shop.home / "fresh" / str(time.monotonic_ns()))
    manifest: IndexManifest = fresh.index_manifest(version)
    return [f"{check.name}: {check.detail}" for check in check_index(manifest, fresh.file) if check.passed is False]


def store_of(shop: Shop) -> str:
    return str(shop.home / "data")


def test_what_a_kept_version_reaches_stays_and_all_else_goes(shop: Shop) -> None:
    first = shop.version()
    chain = [first]
    for n in range(4):
        chain.append(delta(shop, chain[-1], n))
    other = shop.version()
    lost = delta(shop, other, 0)
    newest = delta(shop, chain[-1], 4)
    shop.point(live=chain[-1], blue=chain[-1], previous=chain[2], green=chain[2])
    plan = plan_garbage(shop.registry, store_of(shop), KEEP)
    assert [v.version for v in shop.registry.versions(INDEX_MODEL)] == [newest, lost, other, *reversed(chain)]
    collect(shop.registry, store_of(shop), KEEP, alone_here)
    left = [v.version for v in shop.registry.versions(INDEX_MODEL)]
    assert left == [newest, lost, chain[-1], chain[2]]
    assert set(plan.kept) == set(left)
    assert [problem for version in left for problem in whole(shop, version)] == []
    assert unreachable_files(shop.registry) == []
    held = {item.name for item in plan.items if item.kind == "artifact"}
    assert any("delta-2" in name for name in held)
    assert plan_garbage(shop.registry, store_of(shop), KEEP).items == ()


def test_embeddings_that_a_kept_manifest_names_stay_whatever_their_folders_are_called(shop: Shop) -> None:
    data = shop.home / "data"
    named = [data / "vectors" / "elsewhere", data / "embeddings" / "tiny" / "by-another-name"]
    others = [data / "vectors" / "nobody", data / "embeddings" / "tiny" / "v9-nobody"]
    for folder in (*named, *others):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    commit = EmbeddingCommit(
        uri=str(named[0]), store=str(named[1]), sha256="0" * 64, fingerprint="print", embedded=12, quarantined=0
    )
    version = shop.version(embeddings=(commit,))
    shop.point(live=version, blue=version)
    collect(shop.registry, store_of(shop), KEEP, alone_here)
    assert [folder.exists() for folder in (*named, *others)] == [True, True, False, False]
    tags = shop.registry.version(INDEX_MODEL, version).tags
    assert (tags["embeddings.uri"], tags["embeddings.counts"]) == (str(named[0]), "12 embedded, 0 quarantined")


def test_a_view_that_is_asked_again_between_plan_and_deletion_stays(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view_uri(str(shop.home / "data"), digit * 64) for digit in "01"]
    for view in views:
        write_view(view, b"x")
        os.utime(view.removeprefix("view://"), (0, 0))

    def progress(*_: object) -> Progress:
        assert renew_view(views[0])  # while the collection begins to delete
        return Progress("collect garbage", 1, "things")

    monkeypatch.setattr(garbage, "Progress", progress)
    collect(shop.registry, store_of(shop), replace(KEEP, grace_s=3600.0), alone_here)
    assert [view_exists(view) for view in views] == [True, False]


def test_snapshots_vectors_and_work_of_runs_that_nothing_names_go(shop: Shop) -> None:
    version = shop.version()
    shop.point(live=version, blue=version)
    data = shop.home / "data"
    named = Path(shop.registry.index_manifest(version).snapshot.uri)
    left = [data / kind / "old" for kind in ("snapshots", "vectors", "shards", "towers", "work")]
    for folder in (*left, data / "embeddings" / "tiny" / "v77-abc"):
        folder.mkdir(parents=True)
        (folder / "part.parquet").write_bytes(b"x" * 100)
    (data / "quarantine").mkdir()
    (data / "quarantine" / "old.parquet").write_bytes(b"x")
    asked, unasked = (view_uri(str(data), digit * 64) for digit in "01")
    for view in (asked, unasked):
        write_view(view, b"x")
    spelled = asked.replace("view://", "view://file://")  # as a store that is set as file:// spells it
    write_view_table(str(named), [{"photo_uri": spelled, "product_id": "p000", "image_uri": "images/0.jpg"}])
    later = time.time() + 60
    patient = replace(KEEP, grace_s=3600.0)
    assert plan_garbage(shop.registry, store_of(shop), patient, later).items == ()
    plan = collect(shop.registry, store_of(shop), KEEP, alone_here, later)
    kinds = ["embeddings", "quarantine", "shards", "snapshot", "towers", "vectors", "view", "work"]
    assert sorted(item.kind for item in plan.items) == kinds
    assert plan.bytes == 602
    assert (view_exists(asked), view_exists(unasked)) == (True, False)
    assert named.is_dir()
    assert not [folder for folder in left if folder.exists()]


def test_a_version_whose_manifest_is_lost_stops_every_deletion(shop: Shop) -> None:
    first, second, third = shop.version(), shop.version(), shop.version()
    shop.point(live=third, blue=third)
    run = shop.registry.version(INDEX_MODEL, second).run_id
    shop.registry.delete_artifact(run, f"{INDEX_PATH}/manifest.json")
    with pytest.raises(
        VitrineError, match=rf"index version {second}, which is among the newest 2 versions, cannot be read.*nothing is deleted"
    ):
        collect(shop.registry, store_of(shop), KEEP, alone_here)
    assert whole(shop, first) == []


def test_a_killed_collection_is_finished_by_the_next(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shop.version(), shop.version()
    shop.point(live=second, blue=second)
    run = shop.registry.version(INDEX_MODEL, first).run_id
    few = replace(KEEP, versions=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shop.registry, "delete_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(shop.registry, store_of(shop), few, alone_here)
    assert [v.version for v in shop.registry.versions(INDEX_MODEL)] == [second]
    assert shop.registry.artifacts(run, INDEX_PATH) != []
    collect(shop.registry, store_of(shop), few, alone_here)
    assert shop.registry.artifacts(run, INDEX_PATH) == []
    assert whole(shop, second) == []


def test_no_reachable_segment_goes_while_promotions_run(shop: Shop) -> None:
    """Versions are made, promoted and collected at once; after every round each registered version is whole."""
    lock = threading.Lock()
    version = shop.version()
    shop.point(live=version, blue=version)
    stop, problems, promoted = threading.Event(), [], []

    @contextmanager
    def alone() -> Iterator[Callable[[], None]]:
        with lock:
            yield lambda: None

    def promote() -> None:
        registry = Registry(shop.registry.uri, shop.home / "promoter")
        while not stop.is_set():
            newest = registry.versions(INDEX_MODEL, 1)[0].version
            if newest != (registry.require_alias(INDEX_MODEL, "live").version):
                with lock:
                    plan = choose_slot(registry, newest)
                    warm(registry, [], plan, 5)
                    problems.extend(whole(shop, newest))
                    flip(registry, [], plan, 5)
                promoted.append(newest)
            time.sleep(0.02)

    thread = threading.Thread(target=promote)
    thread.start()
    try:
        for n in range(5):
            version = delta(shop, version, n)
            collect(shop.registry, store_of(shop), replace(KEEP, versions=1), alone)
            problems += unreachable_files(shop.registry)
        until(lambda: bool(promoted) or not thread.is_alive(), "something is promoted")
    finally:
        stop.set()
        thread.join()
    assert problems == []
    assert promoted
    assert [p for v in shop.registry.versions(INDEX_MODEL) for p in whole(shop, v.version)] == []


def test_failed_versions_are_kept_for_a_while_and_do_not_push_good_ones_out(shop: Shop) -> None:
    good = [shop.version(), shop.version()]
    bad = [shop.version(good_gates(recall=0.1)) for _ in range(3)]
    kept = kept_versions(shop.registry.versions(INDEX_MODEL), replace(KEEP, grace_s=3600.0), time.time())
    assert set(kept) == {*good, *bad}
    kept = kept_versions(shop.registry.versions(INDEX_MODEL), KEEP, time.time() + 1)
    assert set(kept) == set(good)


def test_a_collection_that_a_build_took_up_since_the_plan_stays(tmp_path: Path) -> None:
    planned = time.time()
    record_collection(str(tmp_path), CollectionRecord("pgvector", "vitrine_0", "nightly"))
    (folder,) = recorded_collections(str(tmp_path))
    item = GarbageItem("collection", "pgvector vitrine_0", folder, 0, "its version goes")
    assert _renewed(item, Retention(), planned)
    assert not _renewed(item, Retention(), planned + 60)
