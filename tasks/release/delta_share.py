"""How much of a version lies in deltas, and how much is hidden: shares that grow until a rebuild."""

from serving.contract.manifest import IndexManifest


def delta_share(manifest: IndexManifest) -> float:
    """The share of vectors that lie in deltas rather than in a base."""
    rows = {"base": 0, "delta": 0, "tombstones": 0}
    for segment in manifest.segments:
        rows[segment.kind] += segment.rows
    return rows["delta"] / max(rows["base"] + rows["delta"], 1)
