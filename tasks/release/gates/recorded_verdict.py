"""The gate verdict of a registered version, and whether it may be promoted."""

from serving.contract.manifest import IndexManifest
from tasks.registry import Version


def verdict(version: Version, manifest: IndexManifest | None) -> str:
    """ "passed", "failed", or "" when not evaluated. The registry's tag overrides the manifest's gates."""
    told = version.tags.get("verdict", "").partition(":")[0].strip()
    if told in ("passed", "failed"):
        return told
    if manifest is None or not manifest.gates:
        return ""
    return "passed" if all(g.passed for g in manifest.gates) else "failed"


def why_not_promotable(version: Version, manifest: IndexManifest) -> str:
    """Why a version may not be promoted, as one sentence; "" when it may."""
    if "live" in version.aliases:
        return f"index version {version.version} is live already"
    judged = verdict(version, manifest)
    if judged == "passed":
        return ""
    if not judged:
        return f"index version {version.version} was never judged: it has no gates; rebuild it"
    failed = "; ".join(f"{g.name}: {g.reason}" for g in manifest.gates if not g.passed)
    return f"index version {version.version} did not pass its gates: {failed or version.tags['verdict']}"
