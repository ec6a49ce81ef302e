"""Retention policy and reachability, as pure functions: what is reachable from a kept version is never deleted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.contract.manifest import IndexManifest
from tasks.registry import Version
from tasks.release.ancestry import parent_version, uncovered_versions

DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Retention:
    """What is kept beyond what is in use."""

    versions: int = 24
    """Newest index versions that passed their gates: a day of hourly ones. `live`, `previous` and every other alias come on top."""
    encoders: int = 2
    """Newest encoder versions whose vectors are kept; the champion, the challenger and what a kept index needs come on top."""
    grace_s: float = 7 * DAY_S
    """What no kept version names (a snapshot, vectors, a run's artifacts) is left alone this long: a run may be working on it.
    More than the longest run there is: train_encoder may take two days for each of its towers."""


@dataclass(frozen=True)
class Reachable:
    """Everything reachable from kept versions: artifacts as (run, path), snapshots and encoder versions."""

    artifacts: frozenset[tuple[str, str]] = frozenset()
    runs: frozenset[str] = frozenset()
    snapshots: frozenset[str] = frozenset()
    encoders: frozenset[tuple[str, str, str]] = field(default_factory=frozenset)
    """(name, version, document fingerprint)"""
    vectors: frozenset[str] = frozenset()
    """Folders of the embedding commits that the manifests name."""
    stores: frozenset[str] = frozenset()
    """Folders of the embedding stores that these were gathered from."""
    collections: frozenset[str] = frozenset()
    """Collections of other engines that hold base vectors."""


def kept_versions(versions: Sequence[Version], retention: Retention, now_s: float) -> dict[str, str]:
    """Kept versions with reasons, by number: aliased ones, the newest, and recent failures for inspection."""
    newest = sorted(versions, key=lambda v: int(v.version), reverse=True)
    kept = {v.version: f"has the alias {', '.join(v.aliases)}" for v in newest if v.aliases}
    failed = [v for v in newest if v.tags.get("verdict", "").startswith("failed")]
    passed = [v for v in newest if v not in failed]
    for version in passed[: retention.versions]:
        kept.setdefault(version.version, f"is among the newest {retention.versions} versions")
    parent = parent_version(versions, {alias: v.version for v in versions for alias in v.aliases})
    for version in uncovered_versions(parent.version, versions) if parent else []:
        kept.setdefault(version.version, "holds changes that the next refresh takes over")
    for version in failed:
        if now_s - version.created_ms / 1e3 < retention.grace_s:
            kept.setdefault(version.version, "failed its gates recently")
    return kept


def reachable(manifests: Mapping[str, IndexManifest]) -> Reachable:
    """Everything these manifests reference (by the run that registered them), whichever run created it."""
    files = [f for manifest in manifests.values() for f in (*manifest.files(), *manifest.changes)]
    commits = [c for manifest in manifests.values() for c in manifest.embeddings]
    whole = [(run, name) for run in manifests for name in ("manifest.json", "gates.json", "tuning.json")]
    return Reachable(
        artifacts=frozenset([(f.run_id, f.path) for f in files] + [(run, f"index/{name}") for run, name in whole]),
        runs=frozenset([f.run_id for f in files] + list(manifests)),
        snapshots=frozenset(m.snapshot.uri.rstrip("/") for m in manifests.values()),
        encoders=frozenset((m.encoder.name, m.encoder.version, m.encoder.document_fingerprint) for m in manifests.values()),
        vectors=frozenset(c.uri.rstrip("/") for c in commits),
        stores=frozenset(c.store.rstrip("/") for c in commits),
        collections=frozenset(m.engine.collection for m in manifests.values() if m.engine is not None),
    )


def kept_encoders(encoders: Iterable[Version], retention: Retention) -> frozenset[str]:
    """Encoder versions with vectors to keep in any case: aliased ones and the newest few."""
    newest = sorted(encoders, key=lambda v: int(v.version), reverse=True)
    return frozenset(v.version for v in newest if v.aliases) | frozenset(v.version for v in newest[: retention.encoders])
