"""`vitrine release list`, `show`, `diff` and `garbage`: inspect and clean up index versions."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tasks.cli.output import console, find_version, open_registry
from tasks.settings import Settings

MIB = 2**20


def list_versions(limit: Annotated[int, typer.Option(min=1, help="number of versions, newest first")] = 30) -> None:
    """List index versions: status, encoder, products, share in deltas, and gates."""
    from tasks.board.timeline import timeline
    from tasks.registry import INDEX_MODEL

    registry = open_registry()
    versions = registry.versions(INDEX_MODEL, limit)
    if not versions:
        console.print("no index version is registered yet; the DAG rebuild_index makes one")
        return
    table = _table("version", "status", "aliases", "made", "encoder", "products", "in deltas", "MiB", "gates")
    for entry in timeline([_made(registry, v) for v in versions], registry):
        gates = f"[red]failed: {', '.join(entry.failed_gates)}[/]" if entry.failed_gates else f"{len(entry.gates)} passed"
        made = datetime.fromtimestamp(entry.created_ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            entry.version, f"[bold green]{entry.status}[/]" if entry.status == "live" else entry.status, ", ".join(entry.aliases), made,
            entry.encoder, f"{entry.products:,}", f"{entry.delta_share:.1%}", f"{entry.bytes / MIB:.1f}", entry.problem or gates,
        )  # fmt: skip
    console.print(table)


def show(
    version: Annotated[str, typer.Argument(help="an index version or alias; default: show all replicas")] = "",
) -> None:
    """Show what every replica serves and holds; or the gates and lineage of one version."""
    from tasks.board.lineage import lineage
    from tasks.registry import INDEX_MODEL

    if not version:
        show_replicas()
        return
    registry = open_registry()
    found = find_version(registry, version)
    manifest = registry.manifest_of(found)
    console.print(f"[bold]index version {found.version}[/]{' is ' + ', '.join(found.aliases) if found.aliases else ''}")
    for link in lineage(found, manifest, registry):
        console.print(f"  {link.what:16} {link.name} [dim]({link.proof})[/]")
    table = _table("gate", "value", "threshold", "", "why")
    for gate in manifest.gates:
        table.add_row(gate.name, f"{gate.value:.4g}", f"{gate.threshold:.4g}", _verdict(gate.passed), gate.reason)
    console.print(table)
    console.print(f"[dim]{registry.version_url(INDEX_MODEL, found.version)}[/]")


def show_replicas() -> None:
    """Prints what every replica serves and holds, and its problem if any."""
    from tasks.board.replicas import fetch_states, replica_lines
    from tasks.pipelines.common import replicas_of
    from tasks.registry import INDEX_MODEL

    live = open_registry().aliases(INDEX_MODEL).get("live", "")
    console.print(f"live: {'version ' + live if live else 'nothing yet'}")
    for line in replica_lines(fetch_states(replicas_of(Settings.load())), live):
        slots = "; ".join(f"{s.name}: {'version ' + s.version if s.version else 'nothing'} {s.state}" for s in line.slots)
        console.print(f"{line.url}  serves {'version ' + line.live if line.live else 'nothing'}; {slots}")
        if line.problem:
            console.print(f"  [red]{line.problem}[/]")


def diff(
    before: Annotated[str, typer.Argument(help="an index version, by number or alias")],
    after: Annotated[str, typer.Argument(help="the version to compare with")],
    photos: Annotated[int, typer.Option(min=0, help="held-out photos to search in both")] = 30,
) -> None:
    """Compare two index versions: products, files, gates, and answers to the same photos."""
    from tasks.release.diff import difference

    registry = open_registry()
    before, after = (find_version(registry, name).version for name in (before, after))
    found = difference(registry, before, after, photos)
    made = found.products
    console.print(f"[bold]index version {before} -> {after}[/]")
    _change("encoder version", *found.encoders)
    _change("index family", *found.families)
    _change("weights and rules", *found.rankers)
    console.print(
        f"  products: {made.before:,} -> {made.after:,}; {made.added} added, {made.removed} removed, {made.changed} changed"
    )
    for name, ids in (("added", made.added_ids), ("removed", made.removed_ids), ("changed", made.changed_ids)):
        if ids:
            console.print(f"    {name}: {', '.join(ids)}{', …' if getattr(made, name) > len(ids) else ''}")
    console.print(f"  files: {found.files_kept} of {found.files_after} are the same; {found.new_bytes / MIB:.2f} MiB are new")
    table = _table("gate", f"version {before}", f"version {after}", "change")
    for figure in found.figures:
        both = figure.before is not None and figure.after is not None
        change = f"{(figure.after or 0) - (figure.before or 0):+.4g}" if both else ""
        table.add_row(figure.name, _figure(figure.before), _figure(figure.after), change)
    console.print(table)
    if found.answers:
        kept = sum(a.kept for a in found.answers) / len(found.answers)
        hits = [
            sum(0 < place <= 10 for place in places) for places in zip(*((a.before, a.after) for a in found.answers), strict=True)
        ]
        console.print(
            f"{len(found.answers)} photos: {kept:.0%} of the top 20 are the same; Recall@10 {hits[0]} -> {hits[1]} of {len(found.answers)}"
        )
        moved = [a for a in found.answers if a.before != a.after]
        table = _table("photo", "shows", f"place in {before}", f"place in {after}", "top 20 kept")
        for answer in sorted(moved, key=lambda a: a.kept)[:10]:
            table.add_row(
                Path(answer.photo).name, answer.shows, _place(answer.before), _place(answer.after), f"{answer.kept:.0%}"
            )
        if moved:
            console.print(table)


def garbage(
    delete: Annotated[bool, typer.Option("--delete", help="delete it; default: list only")] = False,
    versions: Annotated[int, typer.Option(min=0, help="newest versions to keep; 0: the setting VITRINE_KEEP_VERSIONS")] = 0,
) -> None:
    """List what no kept index version needs, or, with --delete, remove it."""
    from tasks.pipelines.collect_garbage import collect_with_lease, places_of, retention_of
    from tasks.release.retention.garbage import plan_garbage

    chosen = Settings.load()
    if delete:
        done = collect_with_lease(chosen, open_registry(), "vitrine release garbage", versions)
        console.print(done.summary.replace("to collect", "collected"))
        return
    plan = plan_garbage(open_registry(), places_of(chosen), retention_of(chosen, versions))
    if plan.items:
        table = _table("what", "name", "MiB", "why")
        for item in plan.items:
            table.add_row(item.kind, item.name, f"{item.bytes / MIB:.1f}", item.reason)
        console.print(table)
    console.print(plan.summary + ("; --delete removes it" if plan.items else ""))


def _made(registry, version):  # type: ignore[no-untyped-def]
    from serving.contract.files import ContractError
    from tasks.board.timeline import LoadedVersion

    try:
        return LoadedVersion(version, registry.manifest_of(version))
    except ContractError as error:
        return LoadedVersion(version, None, str(error))


def _table(*columns: str) -> Table:
    table = Table(show_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _verdict(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[red]failed[/]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _place(place: int) -> str:
    return str(place) if place else "not among 20"


def _change(what: str, before: str, after: str) -> None:
    console.print(f"  {what}: {escape(before)}" + (f" -> [bold]{escape(after)}[/]" if after != before else ", the same"))
