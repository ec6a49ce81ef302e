"""First step of a refresh: selects its changes and persists the plan, so that a killed run resumes with the same changes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.files import ContractError
from serving.contract.manifest import IndexManifest
from serving.contract.palette import PALETTE
from tasks import storage
from tasks.catalog.changes.comparison import ComparedCatalogue
from tasks.catalog.changes.source import ChangeSource, lies_below_home, open_changes
from tasks.catalog.snapshot import product_table, started_at
from tasks.catalog.sources.settings import row_limits, source_options
from tasks.errors import InputMissing, SettingsError, VitrineError
from tasks.pipelines.common import origin, registry, settings
from tasks.pipelines.index_records import RefreshPlan
from tasks.registry import INDEX_MODEL, Registry, Version
from tasks.settings import Settings
from tasks.watch import alerts

log = logging.getLogger(__name__)

PLAN = "_plan.json"
VISIBLE_S = 3600
"""Visibility timeout of received messages; each step renews it."""
FIRST_PACE = 5.0
"""Assumed pictures a second before the first refresh has measured it: a ViT-B-32 on one core (docs/benchmarks.md)."""
LEAST_CHANGES = 64
"""A refresh takes at least so many changes, however slow the last one was."""
VERSIONS = 2000
"""How many of the newest versions are searched for changes to carry over: 33 hours at one version a minute."""


@contextmanager
def change_source(chosen: Settings, baseline: str = "") -> Iterator[ChangeSource]:
    """Opens the queue that the settings name; `baseline` is the snapshot (uri) that changes found by reading are changes of.

    Raises SettingsError where workers share a store on S3 and this queue would be another one on each of them.
    """
    if chosen.store_uri.startswith("s3://") and lies_below_home(chosen.changes, chosen.catalog_uri):
        name = chosen.changes.partition(":")[0]
        raise SettingsError(
            f"VITRINE_CHANGES={chosen.changes!r} would keep the queue below {chosen.home}, where workers on other machines do not see "
            f"it, and VITRINE_STORE is on S3: name a database that all reach, such as {name}:postgresql://…"
        )
    compared = ComparedCatalogue(chosen.catalog_uri, source_options(chosen), baseline, chosen.most_dropped)
    with open_changes(chosen.changes, chosen.catalog_uri, chosen.home, compared) as source:
        yield source


def drain(run_key: str, limit: int = 0, minutes: float = 0, wait_s: float = 0) -> RefreshPlan:
    """Plans a refresh: pending changes that fit, priority products first, and changes carried over from other versions.

    `limit` and `minutes` bound it (0: the settings): no more changes, and no more than can be embedded in this time at the
    pace of the last refresh. `due` is False when there is nothing to do; `summary` says why, and how much is left waiting.
    `note` is what a person should know of without reading logs: what became dead letters; it is also sent to VITRINE_ALERT_URL.
    Raises InputMissing when no index version is live or a candidate.
    """
    chosen = settings()
    uri = storage.join(chosen.store_uri, "changes", run_key)
    if storage.exists(storage.join(uri, PLAN)):
        return RefreshPlan.from_json(storage.read_json(storage.join(uri, PLAN)))
    models = registry(chosen)
    versions = models.versions(INDEX_MODEL, VERSIONS)
    from tasks.release.ancestry import parent_version

    parent = parent_version(versions, models.aliases(INDEX_MODEL))
    if parent is None:
        raise InputMissing("there is no index version to refresh yet; run the DAG rebuild_index first")
    most = _bound(parent, limit or chosen.refresh_changes, minutes or chosen.refresh_minutes)
    with change_source(chosen, models.manifest_of(parent).snapshot.uri) as source:
        return plan_on(run_key, models, versions, parent, source, most, wait_s)


def plan_on(
    run_key: str,
    models: Registry,
    versions: list[Version],
    parent: Version,
    source: ChangeSource | None,
    most: int,
    wait_s: float,
) -> RefreshPlan:
    """Plans the changes on a given parent version, and persists the plan."""
    from tasks.catalog.changes import ledger
    from tasks.catalog.changes.drain import DrainResult, ParentState
    from tasks.catalog.changes.drain import drain as choose
    from tasks.index.delta_version import mark_membership
    from tasks.index.ranker_config import read_ranker
    from tasks.release.ancestry import uncovered_versions

    chosen = settings()
    uri = storage.join(chosen.store_uri, "changes", run_key)
    if storage.exists(storage.join(uri, PLAN)):
        return RefreshPlan.from_json(storage.read_json(storage.join(uri, PLAN)))
    now = datetime.now(UTC)
    manifest = models.manifest_of(parent)
    columns = columns_of(models, manifest)
    ranker = read_ranker(chosen.ranker, columns)
    products = product_table(manifest.snapshot.uri, ["key", "updated_at"])
    held = ParentState(ledger_of(models, manifest), products, columns)
    others = uncovered_versions(parent.version, versions)
    begun = started_at(manifest.snapshot.uri)
    ledgers = (_ledger_to_carry_over(models, v) for v in others)
    carried = ledger.newer(ledger.carry_over(ledger.latest_changes(ledgers), products, begun, now), held.ledger, products)
    drained, waiting = DrainResult(carried, [], 0, 0, 0), 0
    if source is not None:
        drained = choose(source, held, carried, most + len(carried), wait_s, now, row_limits(chosen))
        waiting = max(source.count_waiting() - len(drained.handles), drained.left)
    something = bool(pc.any(pc.invert(ledger.delete_markers(drained.rows, products, begun))).as_py())
    reranked = ranker != manifest.ranker
    due = something or reranked
    if source is not None and not due:
        source.acknowledge(drained.handles)
    rows = mark_membership(drained.rows, products, base_keys(models, manifest))
    upserts = int(pc.sum(pc.equal(rows["kind"], "upsert")).as_py() or 0)
    deletes = len(rows) - upserts
    parts = [
        f"{upserts} upserts and {deletes} deletes on version {parent.version}",
        f"{len(carried)} of them carried over from version {', '.join(v.version for v in others)}" if len(carried) else "",
        "other weights or rules of the ranker" if reranked else "",
        f"{waiting} wait for the next refresh",
        drained.note,
    ]
    plan = RefreshPlan(
        due=due, run_key=run_key, uri=uri, parent=parent.version, ranker=ranker, carried=[v.version for v in others],
        changes=len(rows) if due else 0, upserts=upserts, deletes=deletes, waiting=waiting, contained=drained.contained,
        received=drained.received, dead_letters=drained.malformed, note=drained.note, now=now.isoformat(),
        summary="; ".join(part for part in parts if part),
    )  # fmt: skip
    log.info("%s", plan.summary)
    if plan.note:
        here = origin(chosen, os.environ)
        alerts.send(plan.note, here.url if here else "")
    if due:
        _persist(plan, rows, drained.handles)
    return plan


def _persist(plan: RefreshPlan, rows: pa.Table, handles: list[Any]) -> None:
    """Writes the changed rows and the messages' handles to the store, the plan last."""
    with storage.writer(storage.join(plan.uri, "rows.parquet")) as stream:
        pq.write_table(rows, stream)
    storage.write_json(storage.join(plan.uri, "handles.json"), handles)
    storage.write_json(storage.join(plan.uri, PLAN), plan.to_json())


def _ledger_to_carry_over(models: Registry, version: Version) -> pa.Table:
    """Another version's ledger. Raises VitrineError naming the version where it cannot be read: skipping it would lose its changes."""
    try:
        return ledger_of(models, models.manifest_of(version))
    except ContractError as error:
        raise VitrineError(
            f"index version {version.version} holds changes that this run has to carry over, and cannot be read: {error}; where a "
            "newer release made it, delete it in MLflow and start rebuild_index (docs/operate/upgrade.md)"
        ) from None


def _bound(parent: Version, limit: int, minutes: float) -> int:
    """Maximum number of changes: the limit, or what can be embedded in the time at the last refresh's throughput."""
    pace = float(parent.tags.get("pace") or FIRST_PACE)
    return max(min(limit, int(60 * minutes * pace)), min(limit, LEAST_CHANGES))


def base_keys(models: Registry, manifest: IndexManifest) -> pa.Array:
    """Keys of the products in the base segments."""
    paths = [models.file(s.table) for s in manifest.segments if s.kind == "base"]
    return pa.concat_tables([pq.read_table(path, columns=["key"]) for path in paths])["key"].combine_chunks()


def extend_visibility(chosen: Settings, plan: RefreshPlan) -> None:
    """Extends the visibility timeout of the plan's messages while a step works."""
    handles = storage.read_json(storage.join(plan.uri, "handles.json"))
    if handles:
        with change_source(chosen) as source:
            source.extend(handles, VISIBLE_S)


def changed_rows(plan: RefreshPlan) -> pa.Table:
    """The planned changes as rows of the ledger."""
    return storage.read_table(storage.join(plan.uri, "rows.parquet"))


def ledger_of(models: Registry, manifest: IndexManifest) -> pa.Table:
    from tasks.catalog.changes import ledger

    return ledger.ledger_of(manifest, models.file)


def columns_of(models: Registry, manifest: IndexManifest) -> pa.Schema:
    """The catalogue columns of the base's row tables (without the palette)."""
    path = models.file(next(s for s in manifest.segments if s.kind == "base").table)
    schema = pq.read_schema(path).remove_metadata()
    return pa.schema([field for field in schema if field.name != PALETTE])
