"""Index versions as a timeline: status, gates, and allowed actions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serving.contract.manifest import IndexManifest
from tasks.queries.query_words import describe, measure_name
from tasks.registry import INDEX_MODEL, Registry, Version
from tasks.release.delta_share import delta_share
from tasks.release.gates.recorded_verdict import verdict, why_not_promotable
from tasks.release.promotion.proposal import superseded

STATUSES = {
    "live": "serves shoppers",
    "previous": "rollback target",
    "failed": "failed a gate",
    "candidate": "passed its gates, awaits promotion",
    "broken": "unreadable manifest",
    "superseded": "replaced by a newer candidate before it was live",
    "kept": "not promoted, or replaced",
}


@dataclass(frozen=True)
class LoadedVersion:
    """A registered version with its manifest; `problem` says why the manifest is missing."""

    version: Version
    manifest: IndexManifest | None
    problem: str = ""


@dataclass(frozen=True)
class GateLine:
    """One gate for display."""

    name: str
    value: float
    threshold: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Entry:
    """One version on the timeline. Times are epoch milliseconds; `delta_share` is the share of rows outside base segments.

    `quarantined` products lack a usable picture; `quarantined_rows` of the catalogue are no products at all.
    """

    version: str
    status: str
    meaning: str
    aliases: tuple[str, ...]
    created_ms: int
    description: str
    problem: str
    encoder: str
    snapshot: str
    products: int
    quarantined: int
    quarantined_rows: int
    segments: int
    delta_share: float
    bytes: int
    family: str
    gates: tuple[GateLine, ...]
    failed_gates: tuple[str, ...]
    withdrawn: str
    """Why a version that passed its gates counts as failed: what was seen once it was live."""
    may_promote: bool
    links: dict[str, str]
    recall_of: str = ""
    """What the gate photo_recall measured, such as "Recall@1 on 200 synthetic queries"."""


def timeline(made: Iterable[LoadedVersion], registry: Registry) -> list[Entry]:
    """One entry per version, in the given order. `registry` is used for URLs only."""
    return [_entry(one, registry) for one in made]


def status(version: Version, manifest: IndexManifest | None, problem: str = "") -> str:
    """One of STATUSES, by precedence."""
    if "live" in version.aliases:
        return "live"
    if problem:
        return "broken"
    if verdict(version, manifest) == "failed":
        return "failed"
    for alias in ("previous", "candidate"):
        if alias in version.aliases:
            return alias
    return "superseded" if superseded(version) else "kept"


def version_kind(manifest: IndexManifest) -> str:
    """ "whole" for a version of bases only, "delta" for one with changes on top of its bases."""
    return "whole" if all(s.kind == "base" for s in manifest.segments) else "delta"


def _entry(made: LoadedVersion, registry: Registry) -> Entry:
    version, manifest = made.version, made.manifest
    now = status(version, manifest, made.problem)
    gates = tuple(GateLine(g.name, g.value, g.threshold, g.passed, g.reason) for g in manifest.gates) if manifest else ()
    failed = tuple(g.name for g in gates if not g.passed)
    withdrawn = version.tags.get("verdict", "") if now == "failed" and not failed else ""
    return Entry(
        version=version.version,
        status=now,
        meaning=_meaning(now, version, withdrawn),
        aliases=version.aliases,
        created_ms=version.created_ms,
        description=version.summary,
        problem=made.problem,
        encoder=manifest.encoder.version if manifest else version.tags.get("encoder_version", ""),
        snapshot=manifest.snapshot.id if manifest else version.tags.get("snapshot", ""),
        products=manifest.counts.servable if manifest else 0,
        quarantined=manifest.counts.quarantined if manifest else 0,
        quarantined_rows=(manifest.counts.quarantined_rows or 0) if manifest else 0,
        segments=len(manifest.segments) if manifest else 0,
        delta_share=delta_share(manifest) if manifest else 0.0,
        bytes=sum(f.bytes for f in manifest.files()) if manifest else 0,
        family=str(manifest.search.get("family", "")) if manifest else "",
        gates=gates,
        failed_gates=failed,
        withdrawn=withdrawn,
        may_promote=manifest is not None and not why_not_promotable(version, manifest),
        links=links(version, registry),
        recall_of=recall_of(manifest),
    )


def _meaning(now: str, version: Version, withdrawn: str) -> str:
    if withdrawn:
        return "was live and was withdrawn"
    return f"superseded {superseded(version)}" if now == "superseded" else STATUSES[now]


def recall_of(manifest: IndexManifest | None) -> str:
    """The name of what `photo_recall` measured: of photos in few words, of others with their number."""
    queries = manifest.queries if manifest else None
    if queries is None or queries.kind == "photos":
        return "Recall@10 on photos"
    return (
        f"{measure_name(queries)} on {describe(queries)}" if queries.kind == "synthetic" else f"answered of {describe(queries)}"
    )


def links(version: Version, registry: Registry) -> dict[str, str]:
    """URLs of a version: model page, run, data docs, and the DAG run that created it."""
    found = {
        "Model version": registry.version_url(version.model, version.version),
        "MLflow run": registry.run_url(version.run_id),
    }
    if version.model == INDEX_MODEL:
        found["Data docs"] = registry.artifact_url(version.run_id, "data_docs")
    if version.tags.get("airflow.url"):
        found["DAG run"] = version.tags["airflow.url"]
    return found


def series(entries: Sequence[Entry], gate: str) -> list[dict[str, object]]:
    """One gate's values over versions, oldest first; versions without that gate are skipped.

    A threshold of 0 is None: the first version has none to be compared with, so any recall passes and there is no line to draw.
    """
    points = []
    for entry in reversed(entries):
        line = next((g for g in entry.gates if g.name == gate), None)
        if line is not None:
            points.append({
                "version": entry.version, "value": line.value, "threshold": line.threshold or None, "passed": line.passed,
                "live": entry.status == "live",
            })  # fmt: skip
    return points
