"""Garbage collection: index versions beyond retention, and everything unreachable from retained versions.

The registry decides: a version leaves it first, its files follow, so that nothing that can still be asked for ever misses a file.
Killed in between, the next collection finds the files by their run. One that cannot read a kept version's manifest deletes
nothing, since it cannot know what that version reaches. A worker's own disk is not looked at here: tasks/worker_disk.py bounds it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from serving.contract.addresses import error_line, hide_secrets
from serving.contract.files import ContractError
from tasks import storage
from tasks.errors import VitrineError
from tasks.index.engine_collections import open_collections, recorded_collection, recorded_collections
from tasks.progress import Progress
from tasks.queries.view_store import view_table
from tasks.registry import ENCODER_MODEL, INDEX_EXPERIMENT, INDEX_MODEL, INDEX_PATH, Registry
from tasks.release.retention.policy import Reachable, Retention, kept_encoders, kept_versions, reachable

log = logging.getLogger(__name__)

COLLECTED = "vitrine.collected"
"""Marks a run whose artifacts were collected, so that it is not listed again every day."""
KINDS = (
    "version", "artifact", "snapshot", "vectors", "changes", "quarantine", "embeddings", "view", "shards", "towers", "work", "collection",
)  # fmt: skip


@dataclass(frozen=True)
class GarbageItem:
    """One garbage item. `name` is for display, `uri` its location; an artifact's is "run_id/path"."""

    kind: str
    name: str
    uri: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class GarbagePlan:
    """What would be deleted, and what is kept and why."""

    items: tuple[GarbageItem, ...]
    kept: dict[str, str]
    finished_runs: tuple[str, ...] = ()
    """Runs with nothing left to collect afterwards."""

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def summary(self) -> str:
        counts = {kind: sum(item.kind == kind for item in self.items) for kind in KINDS}
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing"
        return f"{parts} ({self.bytes / 2**20:.1f} MiB) to collect; {len(self.kept)} index versions are kept"


def plan_garbage(registry: Registry, store: str, retention: Retention, now_s: float | None = None) -> GarbagePlan:
    """Dry run over `registry` and `store` (VITRINE_STORE); reads only.

    Raises VitrineError when the manifest of a kept version cannot be read.
    """
    now = time.time() if now_s is None else now_s
    versions = registry.versions(INDEX_MODEL)
    kept = kept_versions(versions, retention, now)
    manifests = {}
    for version in versions:
        if version.version in kept:
            try:
                manifests[version.run_id] = registry.manifest_of(version)
            except Exception as error:  # whatever MLflow raises: without this manifest nobody knows what the version needs
                raise VitrineError(
                    f"the manifest of index version {version.version}, which {kept[version.version]}, cannot be read "
                    f"({error_line(error)}): nothing is deleted, since it may need any of it; repair or delete that version"
                ) from None
    needed = reachable(manifests)
    items = [
        GarbageItem("version", v.version, f"{INDEX_MODEL}/{v.version}", 0, "beyond retention")
        for v in versions
        if v.version not in kept
    ]
    dropped = {v.run_id for v in versions if v.version not in kept}
    artifacts, finished = _artifacts(registry, needed, dropped, {v.run_id for v in versions}, retention, now)
    items += artifacts
    items += _store(registry, store, needed, retention, now)
    gone = {v.tags.get("run_key", "") for v in versions if v.version not in kept}
    items += _collections(store, needed, gone, retention, now)
    return GarbagePlan(tuple(items), kept, tuple(finished))


def collect(
    registry: Registry,
    store: str,
    retention: Retention,
    alone: Callable[[], AbstractContextManager[Callable[[], None]]],
    now_s: float | None = None,
) -> GarbagePlan:
    """Plans afresh and deletes; gives what was deleted. `alone` keeps promotions out while versions leave the registry, and gives
    a function that raises when it no longer does.

    Raises VitrineError, having deleted no file yet, when a version got an alias by hand since the plan.
    """
    now = time.time() if now_s is None else now_s
    with alone() as check:
        plan = plan_garbage(registry, store, retention, now)
        for item in plan.items:
            if item.kind == "version":
                check()
                if registry.version(INDEX_MODEL, item.name).aliases:  # somebody moved an alias by hand just now
                    raise VitrineError(f"index version {item.name} was given an alias meanwhile: collect again")
                log.info("deleting index version %s from the registry: %s", item.name, item.reason)
                registry.delete_version(INDEX_MODEL, item.name)
    files = [item for item in plan.items if item.kind != "version"]
    with Progress("collect garbage", len(files), "things") as progress:
        for item in files:
            if not _renewed(item, retention, now):
                _delete(registry, item)
            progress.add()
    for run_id in plan.finished_runs:
        registry.tag_run(run_id, COLLECTED, str(int(time.time())))
    log.info("%s", plan.summary.replace("to collect", "collected"))
    return plan


def _renewed(item: GarbageItem, retention: Retention, now: float) -> bool:
    """Whether something in the making took an item up since the plan: a snapshot a view, or a build a collection."""
    if item.kind == "view":
        return now - storage.disk_usage(item.uri)[1] <= retention.grace_s
    return item.kind == "collection" and storage.disk_usage(item.uri)[1] >= int(now)


def _delete(registry: Registry, item: GarbageItem) -> None:
    log.info("%s %s: %s", item.kind, item.name, item.reason)
    if item.kind == "artifact":
        run_id, _, path = item.uri.partition("/")
        registry.delete_artifact(run_id, path)
    elif item.kind == "collection":
        _drop(registry, item.uri)
    elif item.kind in ("quarantine", "view"):
        storage.delete(item.uri)
    else:
        storage.delete_folder(item.uri)


def _artifacts(
    registry: Registry, needed: Reachable, dropped: set[str], registered: set[str], retention: Retention, now: float
) -> tuple[list[GarbageItem], list[str]]:
    """Files of runs whose version is dropped, or that never registered one, unless a kept version references them."""
    items, finished = [], []
    for run in registry.runs(INDEX_EXPERIMENT, COLLECTED):
        orphan = run.run_id not in registered and now - run.at_s > retention.grace_s
        if not (run.run_id in dropped or orphan):
            continue
        reason = "its version goes" if run.run_id in dropped else "its run made no version that is still registered"
        held = registry.artifacts(run.run_id, INDEX_PATH)
        free = [(path, size) for path, size in held if (run.run_id, path) not in needed.artifacts]
        items += [GarbageItem("artifact", f"{run.key}: {path}", f"{run.run_id}/{path}", size, reason) for path, size in free]
        if len(free) == len(held):
            finished.append(run.run_id)
    return items, finished


def _store(registry: Registry, store: str, needed: Reachable, retention: Retention, now: float) -> Iterator[GarbageItem]:
    """Unreferenced snapshots, vectors and quarantine lists, vectors of dropped encoders, and what steps left for each other."""
    keys = {registry.run_key(run) for run in needed.runs}
    encoders = registry.versions(ENCODER_MODEL)
    snapshots = {v.tags.get("snapshot", "") for v in encoders if v.aliases}
    for uri in storage.list_folders(storage.join(store, "snapshots")):
        name = uri.rsplit("/", 1)[1]
        if uri not in needed.snapshots and name not in snapshots | keys:
            yield from _old("snapshot", name, uri, "no kept version was made from it", retention.grace_s, now)
    for uri in storage.list_folders(storage.join(store, "vectors")):
        if (name := uri.rsplit("/", 1)[1]) not in keys and uri not in needed.vectors:
            yield from _old("vectors", name, uri, "no kept version was made from them", retention.grace_s, now)
    for uri in storage.list_folders(storage.join(store, "changes")):
        if (name := uri.rsplit("/", 1)[1]) not in keys:
            yield from _old("changes", name, uri, "no kept version was made from them", retention.grace_s, now)
    for uri in storage.list_files(storage.join(store, "quarantine"), ".parquet"):
        if (name := uri.rsplit("/", 1)[1].removesuffix(".parquet")) not in keys:
            yield from _old("quarantine", name, uri, "no kept version was made by its run", retention.grace_s, now)
    yield from _views(store, retention, now)
    for kind in ("shards", "towers", "work"):  # a version has its own copy of what was made of these
        for uri in storage.list_folders(storage.join(store, kind)):
            yield from _old(kind, uri.rsplit("/", 1)[1], uri, "the run that made it ended long ago", retention.grace_s, now)
    kept = kept_encoders(encoders, retention)
    used = {(name, f"v{version}-{print_[:12]}") for name, version, print_ in needed.encoders}
    for encoder in storage.list_folders(storage.join(store, "embeddings")):
        for uri in storage.list_folders(encoder):
            name, folder = encoder.rsplit("/", 1)[1], uri.rsplit("/", 1)[1]
            number = folder.partition("-")[0].removeprefix("v")
            if number not in kept and (name, folder) not in used and uri not in needed.stores:
                reason = "neither a kept index version nor a recent encoder version uses them"
                yield from _old("embeddings", f"{name} {folder}", uri, reason, retention.grace_s, now)


def _collections(store: str, needed: Reachable, gone: set[str], retention: Retention, now: float) -> Iterator[GarbageItem]:
    """Collections made from this store that no kept version names: at once where the version that they were made for goes."""
    for folder, record in recorded_collections(store).items():
        if record.name in needed.collections:
            continue
        name = f"{record.engine} {record.name}"
        if record.run_key in gone:
            yield GarbageItem("collection", name, folder, 0, "its version goes")
        else:
            yield from _old("collection", name, folder, "no kept version names it", retention.grace_s, now)


def _drop(registry: Registry, folder: str) -> None:
    """Drops a recorded collection in its engine, then its record. While the engine is away both stay, for the next collection."""
    record = recorded_collection(folder)
    try:
        open_collections(record.engine, registry.endpoint).drop(record.name)
    except Exception as error:  # every client has its own classes, and other garbage does not wait for an engine
        log.warning("collection %s stays, as %s does not take it away: %s", record.name, record.engine, hide_secrets(str(error)))
        return
    storage.delete_folder(folder)


def _views(store: str, retention: Retention, now: float) -> Iterator[GarbageItem]:
    """Views that no snapshot in the store asks any more; by name, as a table may spell the store's address otherwise."""
    folders = storage.list_folders(storage.join(store, "snapshots"))
    asked = {uri.rsplit("/", 1)[1] for folder in folders for uri in view_table(folder)["photo_uri"].to_pylist()}
    for uri in storage.list_files(storage.join(store, "views"), ".jpg"):
        if (name := uri.rsplit("/", 1)[1]) not in asked:
            yield from _old("view", name, uri, "no snapshot asks it any more", retention.grace_s, now)


def _old(kind: str, name: str, uri: str, reason: str, age_s: float, now: float) -> Iterator[GarbageItem]:
    size, written = storage.disk_usage(uri)
    if now - written > age_s:
        yield GarbageItem(kind, name, uri, size, reason)


def unreachable_files(registry: Registry) -> list[str]:
    """Files referenced by registered versions but missing in their run: "version: run/path". Empty when all exist."""
    missing = []
    for version in registry.versions(INDEX_MODEL):
        try:
            manifest = registry.manifest_of(version)
        except ContractError as error:
            missing.append(f"{version.version}: {error}")
            continue
        held: dict[str, set[str]] = {}
        for ref in (*manifest.files(), *manifest.changes):
            if ref.run_id not in held:
                held[ref.run_id] = {path for path, _ in registry.artifacts(ref.run_id, INDEX_PATH)}
            if ref.path not in held[ref.run_id]:
                missing.append(f"{version.version}: {ref.run_id}/{ref.path}")
    return missing
