"""The steps of refresh_index, which `vitrine stream` takes as well: what changed becomes a small index version on top of another.

Each step leaves its result under the run's key, so that a run that was killed anywhere goes on with the same changes and makes
the same files. A message is acknowledged when a version that holds it passed its gates and is registered.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.files import FileRef, describe, verify, written_whole
from serving.contract.manifest import Counts, IndexManifest, Segment
from serving.contract.segments import read_rows, write_rows
from tasks import storage
from tasks.catalog.changes.source import ChangeSource, open_changes
from tasks.catalog.snapshot import product_table, read_snapshot, started_at
from tasks.errors import VitrineError
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry, Run, Version
from tasks.settings import Settings
from tasks.steps.common import registry, settings, work_folder
from tasks.steps.indexing import EXPERIMENT

log = logging.getLogger(__name__)

PLAN = "_plan.json"
VISIBLE_S = 3600
"""How long a step keeps received messages from others; each step asks for it anew."""
FIRST_PACE = 5.0
"""Pictures a second, while no refresh has measured its own: a ViT-B-32 on one core (docs/performance.md)."""
LEAST_CHANGES = 64
PACED = 50
"""Fewer pictures than this say little of the pace."""
DIRECT_PICTURES = 2_000
"""Up to so many new pictures are embedded without Spark, whose start takes about 20 s here (docs/decisions/0021)."""
MERGE_SEGMENTS = 24
"""A shard with more segments has its deltas merged: every search asks each of them."""
MERGE_LEDGERS = 16
VERSIONS = 2000
"""How far back versions are looked through for changes that were not taken along: 33 hours at one a minute."""


@contextmanager
def change_source(chosen: Settings) -> Iterator[ChangeSource]:
    """The queue that the settings name, open."""
    with open_changes(chosen.changes, chosen.catalog_uri, chosen.home) as source:
        yield source


def drain(run_key: str, limit: int = 0, minutes: float = 0, wait_s: float = 0) -> dict[str, Any]:
    """What this run will change: the waiting changes that fit, priority products first, and what other versions hold besides.

    `limit` and `minutes` bound it (0: the settings): no more changes, and no more than can be embedded in this time at the
    pace of the last refresh. "changes" is 0 when there is nothing to do; "summary" says why, and how much is left waiting.
    """
    chosen = settings()
    uri = storage.join(chosen.store_uri, "changes", run_key)
    if storage.exists(storage.join(uri, PLAN)):
        return storage.read_json(storage.join(uri, PLAN))
    models = registry(chosen)
    versions = models.versions(INDEX_MODEL, VERSIONS)
    from tasks.release.ancestry import to_build_on

    parent = to_build_on(versions, models.aliases(INDEX_MODEL))
    if parent is None:
        return {"changes": 0, "summary": "there is no index version to refresh yet; run the DAG rebuild_index first"}
    most = _bound(parent, limit or chosen.refresh_changes, minutes or chosen.refresh_minutes)
    with change_source(chosen) as source:
        return _plan(run_key, models, versions, parent, source, most, wait_s)


def catch_up(registered: dict, run_key: str) -> dict[str, Any]:
    """A new base, and on top of it what hourly versions took in while it was built; nothing is drained.

    Gives the record of the version to publish: the base itself where nothing was missed.
    """
    if not registered["passed"]:
        return registered
    models = registry()
    versions = models.versions(INDEX_MODEL, VERSIONS)
    parent = models.version(INDEX_MODEL, registered["version"])
    plan = _plan(f"{run_key}.caught-up", models, versions, parent, None, 0, 0)
    if not plan["changes"]:
        return registered
    log.info("version %s: %s", parent.version, plan["summary"])
    return register(plan, embed(plan))


def embed(plan: dict) -> dict[str, Any]:
    """The new products and pictures through the embedding job and its store: a picture is embedded once, whoever meets it."""
    from tasks.catalog.changes.drain import Upserts
    from tasks.catalog.snapshot import write_snapshot
    from tasks.embed.job import EmbedConfig, embed_snapshot

    chosen = settings()
    models = registry(chosen)
    _keep(chosen, plan)
    manifest = models.index_manifest(plan["parent"])
    rows = _rows(plan)
    if not plan["upserts"]:
        return {}
    columns = _columns(models, manifest)
    source = Upserts(f"changes of {plan['run_key']}", manifest.snapshot.image_root, rows, columns)
    uri = storage.join(chosen.store_uri, "snapshots", plan["run_key"])
    snapshot = (
        read_snapshot(uri)
        if storage.exists(storage.join(uri, "_manifest.json"))
        else write_snapshot(source, source.name, uri, plan["run_key"], plan["now"])
    )
    config = EmbedConfig(
        spark_master=chosen.spark_master, shards=manifest.shards, hosts=chosen.image_hosts, direct=DIRECT_PICTURES, looks=False
    )
    began = datetime.now(UTC)
    embedded = embed_snapshot(
        snapshot, models.encoder_folder(manifest.encoder.version), manifest.encoder.version, chosen.store_uri, plan["run_key"],
        work_folder(plan["run_key"]) / "embed", config,
    )  # fmt: skip
    took = (datetime.now(UTC) - began).total_seconds()
    pace = embedded.embedded_now / took if embedded.embedded_now >= PACED else 0.0
    return dataclasses.asdict(embedded) | {"pace": round(pace, 2), "snapshot_uri": snapshot.uri}


def register(plan: dict, embedded: dict, photos: int = 0) -> dict[str, Any]:
    """A delta and a tombstone segment per touched shard, measured by the same gates as a whole index, and registered.

    `photos` bounds how many held-out photos are asked (0: all).
    """
    chosen = settings()
    models = registry(chosen)
    _keep(chosen, plan)
    run_key = plan["run_key"]
    made = next((v for v in models.versions(INDEX_MODEL, VERSIONS) if v.tags.get("run_key") == run_key), None)
    if made is not None:
        return _registered(made)
    folder = work_folder(run_key) / "index"
    with models.run(EXPERIMENT, run_key, f"delta on version {plan['parent']}") as run:
        from tasks.release.gates import of_gates

        manifest, measured = _version(models, chosen, plan, embedded, run, folder, photos)
        decision = of_gates(manifest.gates)
        _upload(run, manifest, folder)
        run.params({"parent": plan["parent"], "changes": plan["changes"], "encoder_version": manifest.encoder.version})
        run.metrics({g.name: g.value for g in manifest.gates} | {"recall_at_10": measured.recall_at_10})
        text = f"{plan['summary']}: {manifest.counts.servable} products; {decision.summary}"
        version = models.register(INDEX_MODEL, run.run_id, INDEX_PATH, _tags(plan, embedded, manifest, decision.passed), text)
    record = _registered(version)
    log.info("%s", record["summary"])
    return record


def acknowledge(plan: dict, registered: dict) -> dict[str, Any]:
    """Takes the messages out of the queue, now that a version which passed holds what they say; gives how many still wait."""
    chosen = settings()
    handles = storage.read_json(storage.join(plan["uri"], "handles.json"))
    with change_source(chosen) as source:
        if registered.get("passed"):
            source.acknowledge(handles)
        else:
            source.release(handles)
        waiting = source.waiting()
    log.info("%d messages acknowledged, %d wait", len(handles) if registered.get("passed") else 0, waiting)
    return {"acknowledged": len(handles) if registered.get("passed") else 0, "waiting": waiting}


def publish(registered: dict) -> bool:
    """Makes the version the candidate, unless one on a newer snapshot became it meanwhile: the next refresh then carries it over."""
    from tasks.release.ancestry import covered

    models = registry()
    candidate = models.alias(INDEX_MODEL, "candidate")
    if candidate is not None and candidate.version not in covered(registered["version"], models.versions(INDEX_MODEL, VERSIONS)):
        ours, theirs = (models.index_manifest(v).snapshot for v in (registered["version"], candidate.version))
        if ours != theirs and started_at(theirs.uri) > started_at(ours.uri):
            log.info("version %s is built on a newer snapshot: the next refresh carries these changes over", candidate.version)
            return False
    models.set_alias(INDEX_MODEL, "candidate", registered["version"])
    return True


def _bound(parent: Version, limit: int, minutes: float) -> int:
    """How many changes fit: the limit, or what the pace of the last refresh lets embed in the time."""
    pace = float(parent.tags.get("pace") or FIRST_PACE)
    return max(min(limit, int(60 * minutes * pace)), min(limit, LEAST_CHANGES))


def _plan(
    run_key: str,
    models: Registry,
    versions: list[Version],
    parent: Version,
    source: ChangeSource | None,
    most: int,
    wait_s: float,
) -> dict[str, Any]:
    """Decides what the run changes, and writes it down before anything else happens."""
    from tasks.catalog.changes import ledger
    from tasks.catalog.changes.drain import Drained, Held
    from tasks.catalog.changes.drain import drain as choose
    from tasks.release.ancestry import uncovered

    chosen = settings()
    uri = storage.join(chosen.store_uri, "changes", run_key)
    if storage.exists(storage.join(uri, PLAN)):
        return storage.read_json(storage.join(uri, PLAN))
    now = datetime.now(UTC)
    manifest = models.manifest_of(parent)
    products = product_table(manifest.snapshot.uri, ["key", "updated_at"])
    held = Held(_ledger(models, manifest), products, _columns(models, manifest))
    others = uncovered(parent.version, versions)
    begun = started_at(manifest.snapshot.uri)
    carried = ledger.carried(ledger.newest(_ledger(models, models.manifest_of(v)) for v in others), products, begun, now)
    carried = ledger.fresh(carried, held.ledger, products)
    kept_in_mind = int(pc.sum(ledger.memories(carried, products, begun)).as_py() or 0)
    drained = Drained(carried, [], 0, 0, 0)
    waiting = 0
    if source is not None:
        drained = choose(source, held, carried, most + len(carried), wait_s, now)
        if len(drained.rows) <= kept_in_mind:
            source.acknowledge(drained.handles)
        else:
            source.extend(drained.handles, VISIBLE_S)
        waiting = max(source.waiting() - len(drained.handles), drained.left)
    rows = _placed(models, manifest, drained.rows, products)
    upserts = int(pc.sum(pc.equal(rows["kind"], "upsert")).as_py() or 0)
    counted = {"changes": len(rows), "upserts": upserts, "deletes": len(rows) - upserts, "waiting": waiting}
    parts = [f"{upserts} upserts and {len(rows) - upserts} deletes on version {parent.version}"]
    parts += [f"{len(carried)} of them carried over from version {', '.join(v.version for v in others)}"] if len(carried) else []
    parts += [f"{drained.malformed} malformed messages went to the dead letters"] if drained.malformed else []
    plan = counted | {
        "run_key": run_key, "uri": uri, "parent": parent.version, "carried": [v.version for v in others],
        "contained": drained.contained, "malformed": drained.malformed, "now": now.isoformat(),
        "summary": "; ".join([*parts, f"{waiting} wait for the next refresh"]),
    }  # fmt: skip
    log.info("%s", plan["summary"])
    if len(rows) <= kept_in_mind:
        return plan | {"changes": 0}
    with storage.writer(storage.join(uri, "rows.parquet")) as stream:
        pq.write_table(rows, stream)
    storage.write_json(storage.join(uri, "handles.json"), drained.handles)
    storage.write_json(storage.join(uri, PLAN), plan)
    return plan


def _placed(models: Registry, manifest: IndexManifest, rows: pa.Table, products: pa.Table) -> pa.Table:
    """The rows, each saying whether the base's snapshot and its segments have the product."""
    bases = [models.file(s.table) for s in manifest.segments if s.kind == "base"]
    base = pa.concat_tables([pq.read_table(path, columns=["key"]) for path in bases])["key"]
    for name, keys in (("in_snapshot", products["key"]), ("in_base", base)):
        rows = rows.set_column(rows.column_names.index(name), name, pc.is_in(rows["key"], keys.combine_chunks()))
    return rows


def _keep(chosen: Settings, plan: dict) -> None:
    """Keeps the plan's messages from being given to others while a step works."""
    handles = storage.read_json(storage.join(plan["uri"], "handles.json"))
    if handles:
        with change_source(chosen) as source:
            source.extend(handles, VISIBLE_S)


def _rows(plan: dict) -> pa.Table:
    return storage.read_table(storage.join(plan["uri"], "rows.parquet"))


def _ledger(models: Registry, manifest: IndexManifest) -> pa.Table:
    from tasks.catalog.changes.ledger import newest

    return newest(read_rows(models.file(ref)) for ref in manifest.changes)


def _columns(models: Registry, manifest: IndexManifest) -> pa.Schema:
    """The columns of the base's row tables."""
    path = models.file(next(s for s in manifest.segments if s.kind == "base").table)
    return pq.read_schema(path).remove_metadata()


def _version(
    models: Registry, chosen: Settings, plan: dict, embedded: dict, run: Run, folder: Path, photos: int
) -> tuple[IndexManifest, Any]:
    """The whole version, its files in `folder`: manifest with golden answers, gates and ledger, and what was measured."""
    from serving.release import Release
    from serving.searcher import Searcher
    from tasks.catalog.changes.ledger import newest
    from tasks.index.assemble import with_golden
    from tasks.release.reconcile import catalogue_now
    from tasks.release.whole_path import MAX_PHOTOS, held_out
    from tasks.steps.judging import judge

    parent = models.index_manifest(plan["parent"])
    held, changed = _ledger(models, parent), _rows(plan)

    def locate(ref: FileRef) -> Path:
        mine = folder / Path(ref.path).relative_to(INDEX_PATH)
        return verify(mine, ref) if ref.run_id == run.run_id else models.file(ref)

    segments, changed = _segments(parent, held, changed, embedded, folder, run.run_id, locate)
    whole = newest([held, changed])
    # Where many small ledgers pile up, one takes their place.
    merged = len(parent.changes) >= MERGE_LEDGERS
    write_rows(folder / "changes.parquet", whole if merged else changed)
    mine = describe(folder / "changes.parquet", f"{INDEX_PATH}/changes.parquet", run.run_id)
    manifest = parent.model_copy(
        update={
            "id": plan["run_key"], "created_at": plan["now"], "segments": segments, "parent": plan["parent"], "gates": (),
            "counts": _counts(parent, segments, whole), "changes": (mine,) if merged else (*parent.changes, mine),
            "content_key": _content_key(parent, changed),
        }
    )  # fmt: skip
    golden = np.load(models.file(parent.golden))["vectors"]
    manifest = with_golden(manifest, Searcher.open(manifest, locate), golden, folder, run.run_id, INDEX_PATH)
    release = Release.open("candidate", manifest, models.encoder_folder(manifest.encoder.version), locate)
    snapshot = read_snapshot(manifest.snapshot.uri)
    gone = set(whole.filter(pc.equal(whole["kind"], "delete"))["product_id"].to_pylist())
    # A photo of a product that was deleted has no right answer any more.
    queries = [q for q in held_out(snapshot, photos or MAX_PHOTOS) if q.product_id not in gone]
    read_at = datetime.fromisoformat(plan["now"])
    decision, candidate = judge(models, release, snapshot, queries, read_at, catalogue_now(snapshot, whole))
    return manifest.model_copy(update={"gates": decision.gates}), candidate


def _segments(
    parent: IndexManifest, held: pa.Table, changed: pa.Table, embedded: dict, folder: Path, run_id: str, locate: Any
) -> tuple[tuple[Segment, ...], pa.Table]:
    """The segments of the next version, and the changes with what became of each."""
    from tasks.catalog.changes.ledger import DELETED, INDEXED, QUARANTINED
    from tasks.index.build import rows_of
    from tasks.index.delta import Changes, add_delta, merge_deltas
    from tasks.index.vectors import shard_batches

    blocks = [b for s in range(parent.shards) for b in shard_batches(embedded["vectors_uri"], s)] if embedded else []
    keys = np.concatenate([k for k, _ in blocks]) if blocks else np.zeros(0, np.int64)
    vectors = np.concatenate([v for _, v in blocks]) if blocks else np.zeros((0, parent.encoder.dim), np.float32)
    indexed = pc.is_in(changed["key"], pa.array(keys))
    state = pc.if_else(pc.equal(changed["kind"], "delete"), DELETED, pc.if_else(indexed, INDEXED, QUARANTINED))
    changed = changed.set_column(changed.column_names.index("state"), "state", state)
    # Only what may be in a segment needs hiding there: a tombstone costs every search a little.
    before = held.filter(pc.equal(held["state"], INDEXED))["key"]
    hidden = changed.filter(pc.and_(pc.invert(indexed), pc.or_(changed["in_base"], pc.is_in(changed["key"], before))))
    rows = rows_of(embedded["snapshot_uri"], keys, 0, 1) if len(keys) else pa.table({"key": pa.array([], pa.int64())})
    changes = Changes(rows, vectors, hidden["key"].to_numpy())
    segments = add_delta(parent, changes, folder, run_id, INDEX_PATH)
    if np.bincount([s.shard for s in segments]).max() > MERGE_SEGMENTS:
        grown = parent.model_copy(update={"segments": segments})
        segments = merge_deltas(grown, locate, folder / "merged", run_id, f"{INDEX_PATH}/merged")
    return segments, changed


def _counts(parent: IndexManifest, segments: tuple[Segment, ...], whole: pa.Table) -> Counts:
    """Where every product of the catalogue is, by the ledger alone; the gates compare it with what can really be found."""
    from tasks.catalog.changes.ledger import INDEXED, QUARANTINED

    def rows(mask: pa.Array) -> int:
        return int(pc.sum(mask).as_py() or 0)

    base = sum(s.rows for s in segments if s.kind == "base")
    gone = pc.equal(whole["kind"], "delete")
    new = rows(pc.and_(pc.invert(gone), pc.invert(whole["in_snapshot"])))
    catalogue = parent.snapshot.rows + new - rows(pc.and_(gone, whole["in_snapshot"]))
    embedded = base - rows(whole["in_base"]) + rows(pc.equal(whole["state"], INDEXED))
    unusable = parent.snapshot.rows - base - rows(pc.and_(whole["in_snapshot"], pc.invert(whole["in_base"])))
    quarantined = unusable + rows(pc.equal(whole["state"], QUARANTINED))
    return Counts(
        catalogue=catalogue, embedded=embedded, quarantined=quarantined, servable=embedded,
        indexed=sum(s.rows for s in segments if s.index is not None),
        tombstoned=sum(s.rows for s in segments if s.kind == "tombstones"),
    )  # fmt: skip


def _content_key(parent: IndexManifest, changed: pa.Table) -> str:
    """Names what the version is made from, as a whole index's does: never that of a base, so that a rebuild is not skipped."""
    import hashlib

    text = "\n".join([parent.content_key, *changed["digest"].to_pylist()])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _upload(run: Run, manifest: IndexManifest, folder: Path) -> None:
    """The run's own files, the manifest last, so that what has a manifest is whole."""
    for ref in (*manifest.files(), *manifest.changes):
        if ref.run_id == run.run_id:
            path = Path(ref.path)
            run.artifact(folder / path.relative_to(INDEX_PATH), str(path.parent))
    gates = json.dumps([g.model_dump() for g in manifest.gates], indent=1)
    for name, content in {"gates.json": gates, "manifest.json": manifest.model_dump_json(indent=1)}.items():
        with written_whole(folder / name) as path:
            path.write_text(content)
        run.artifact(folder / name, INDEX_PATH)


def _tags(plan: dict, embedded: dict, manifest: IndexManifest, passed: bool) -> dict[str, str]:
    from tasks.index.delta import compaction_due
    from tasks.release.ancestry import CARRIED, CHANGES, PARENT

    tags = {
        "encoder_version": manifest.encoder.version, "snapshot": manifest.snapshot.id, "verdict": "passed" if passed else "failed",
        "products": str(manifest.counts.servable), "content_key": manifest.content_key, "run_key": plan["run_key"],
        PARENT: plan["parent"],
    }  # fmt: skip
    if passed:
        tags |= {CHANGES: str(plan["changes"]), CARRIED: ",".join(plan["carried"])}
    if embedded.get("pace"):
        tags["pace"] = str(embedded["pace"])
    if due := compaction_due(manifest.segments):
        tags["compaction_due"] = due
    return {name: value for name, value in tags.items() if value}


def _registered(version: Version) -> dict[str, Any]:
    return {
        "version": version.version, "passed": version.tags["verdict"] == "passed",
        "summary": f"index version {version.version}: {version.description.partition(chr(10))[0]}",
        "compaction_due": version.tags.get("compaction_due", ""),
    }  # fmt: skip


def refuse(registered: dict) -> None:
    """Raises VitrineError with the failed gates, for a version that did not pass: its changes stay in the queue."""
    if not registered["passed"]:
        raise VitrineError(registered["summary"])
