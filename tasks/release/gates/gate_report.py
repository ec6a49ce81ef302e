"""The gate report shown to the approver of a promotion."""

from collections.abc import Mapping

from serving.contract.manifest import IndexManifest


def approval_text(manifest: IndexManifest, version: str, live: str, shadow: str, links: Mapping[str, str]) -> str:
    """Markdown: what approving does, each gate with what was measured and required, the shadow check, and links."""
    counts = manifest.counts
    rows = [f"| {g.name} | {'passed' if g.passed else '**failed**'} | {g.reason.replace('|', '/')} |" for g in manifest.gates]
    against = f"Shoppers get it instead of version {live}" if live else "It becomes the first version that shoppers get"
    return "\n".join([
        f"Approve index version **{version}**? {against}, at once. Rejecting leaves everything as it is.",
        "",
        f"It holds {counts.servable} searchable products ({counts.quarantined} more are in quarantine), from snapshot "
        f"{manifest.snapshot.id}, embedded by encoder version {manifest.encoder.version}.",
        "",
        "| gate | result | measured |",
        "|---|---|---|",
        *rows,
        "",
        f"Every replica has loaded it. Shadow check: {shadow}.",
        "",
        " · ".join(f"[{name}]({url})" for name, url in links.items()),
    ])  # fmt: skip
