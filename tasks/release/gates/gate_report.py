"""The gate report shown to the approver of a promotion."""

from collections.abc import Mapping

from serving.contract.manifest import IndexManifest


def approval_text(manifest: IndexManifest, version: str, live: str, shadow: str, links: Mapping[str, str]) -> str:
    """Markdown: the version, each gate with value and threshold, the shadow check, and links."""
    counts = manifest.counts
    rows = [
        f"| {g.name} | {'passed' if g.passed else '**failed**'} | {g.value:.4g} | {g.threshold:.4g} | {g.reason} |"
        for g in manifest.gates
    ]
    against = f"instead of version {live}" if live else "as the first version"
    return "\n".join([
        f"Version **{version}** would be served {against}: {counts.servable} products, {counts.quarantined} in quarantine, "
        f"encoder version {manifest.encoder.version}, snapshot {manifest.snapshot.id}.",
        "",
        "| gate | | value | threshold | reason |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Every replica holds it. Shadow check: {shadow}.",
        "",
        " · ".join(f"[{name}]({url})" for name, url in links.items()),
    ])  # fmt: skip
