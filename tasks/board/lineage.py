"""Lineage of an index version, from answers back to the catalogue."""

from dataclasses import dataclass

from serving.contract.manifest import IndexManifest
from tasks.registry import ENCODER_MODEL, Registry, Version


@dataclass(frozen=True)
class Link:
    """One step of a lineage: kind, name, proof (a checksum), and URL ("" without a page)."""

    what: str
    name: str
    proof: str
    url: str = ""


def lineage(version: Version, manifest: IndexManifest, registry: Registry) -> list[Link]:
    """Answer <- index version <- segments <- vectors <- encoder version <- snapshot <- catalogue."""
    encoder, snapshot, counts = manifest.encoder, manifest.snapshot, manifest.counts
    kinds = {kind: [s for s in manifest.segments if s.kind == kind] for kind in ("base", "delta", "tombstones")}
    made_of = ", ".join(f"{len(found)} {kind} segment{'s' * (len(found) > 1)}" for kind, found in kinds.items() if found)
    runs = {s.table.run_id for s in manifest.segments if s.table.run_id}
    reused = len(runs - {version.run_id})
    from_runs = f"; built by this run and {reused} earlier run{'s' * (reused > 1)}" if reused else ""
    engine = f"; base vectors in {manifest.engine.name}, collection {manifest.engine.collection}" if manifest.engine else ""
    return [
        Link("answer", "every search answer names its versions", f"index {version.version}, encoder {encoder.version}"),
        Link("index version", version.version, manifest.id, registry.version_url(version.model, version.version)),
        Link(
            "segments",
            f"{made_of}, over {manifest.shards} shard{'s' * (manifest.shards > 1)}{from_runs}{engine}",
            f"golden answers {manifest.golden.sha256[:12]}",
            registry.artifact_url(version.run_id, "index"),
        ),
        Link(
            "vectors",
            f"{counts.embedded} products{f' with {counts.pictures} pictures' if counts.pictures else ''} as {encoder.dim} dimensions",
            f"made by {encoder.document}, {encoder.document_fingerprint[:12]}",
        ),
        Link(
            "encoder version",
            encoder.version,
            f"queries by {encoder.query}, {encoder.query_fingerprint[:12]}",
            registry.version_url(ENCODER_MODEL, encoder.version),
        ),
        Link("snapshot", snapshot.id, f"{snapshot.rows} rows, content {snapshot.content_sha256[:12]}"),
        Link(
            "catalogue",
            f"{counts.catalogue} products: {counts.servable} servable, {counts.quarantined} in quarantine{counts.of_pictures}"
            f"{counts.set_aside}",
            f"pictures from {snapshot.image_root}" if snapshot.image_root else "pictures by their own addresses",
        ),
    ]  # fmt: skip
