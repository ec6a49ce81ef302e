"""Share of a version's vectors in deltas, which grows until a rebuild."""

from serving.contract.manifest import IndexManifest


def delta_share(manifest: IndexManifest) -> float:
    """Share of vectors in delta rather than base segments."""
    rows = {"base": 0, "delta": 0, "tombstones": 0}
    for segment in manifest.segments:
        rows[segment.kind] += segment.vectors
    return rows["delta"] / max(rows["base"] + rows["delta"], 1)
