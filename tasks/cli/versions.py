"""`vitrine release list`, `show`, `diff` and `garbage`: inspect and clean up index versions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from tasks.cli.output import AsJson, console, find_version, open_registry, print_answer, print_json, print_table
from tasks.settings import Settings

MIB = 2**20
LIVE = "bold green"


def list_versions(
    limit: Annotated[int, typer.Option(min=1, help="number of versions, newest first")] = 30, as_json: AsJson = False
) -> None:
    """List index versions: status, encoder, products, share in deltas, and gates."""
    from tasks.board.timeline import timeline
    from tasks.registry import INDEX_MODEL

    registry = open_registry()
    entries = timeline([_made(registry, v) for v in registry.versions(INDEX_MODEL, limit)], registry)
    if as_json:
        print_json(entries)
    elif entries:
        columns = ("version", "status", "made", "encoder", "products", "in deltas", "MiB", "gates")
        print_table(columns, [_row(entry) for entry in entries], right=("version", "encoder", "products", "in deltas", "MiB"))
    else:
        console.print("no index version is registered yet; the DAG rebuild_index makes one")


def _row(entry: Any) -> tuple[str | Text, ...]:
    passed = f"{len(entry.gates)} passed"
    gates = Text(f"failed: {', '.join(entry.failed_gates)}", "red") if entry.failed_gates else entry.problem or passed
    also = [alias for alias in entry.aliases if alias != entry.status]
    return (
        entry.version, Text(", ".join([entry.status, *also]), LIVE if entry.status == "live" else ""),
        datetime.fromtimestamp(entry.created_ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M"), entry.encoder, f"{entry.products:,}",
        f"{entry.delta_share:.1%}", f"{entry.bytes / MIB:.1f}", gates,
    )  # fmt: skip


def show(
    version: Annotated[str, typer.Argument(help="an index version or alias; default: show all replicas")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what every replica serves and holds; or the gates and lineage of one version."""
    from tasks.board.lineage import lineage
    from tasks.registry import INDEX_MODEL

    if not version:
        _show_replicas(as_json)
        return
    registry = open_registry()
    found = find_version(registry, version)
    manifest = registry.manifest_of(found)
    links, page = lineage(found, manifest, registry), registry.version_url(INDEX_MODEL, found.version)
    if as_json:
        print_json({"version": found, "lineage": links, "gates": manifest.gates, "page": page})
        return
    console.print(f"[bold]index version {found.version}[/]{' is ' + ', '.join(found.aliases) if found.aliases else ''}")
    for link in links:
        console.print(f"  {link.what:16} {escape(link.name)} [dim]({escape(link.proof)})[/]")
    gates = [(g.name, f"{g.value:.4g}", f"{g.threshold:.4g}", _verdict(g.passed), g.reason) for g in manifest.gates]
    print_table(("gate", "value", "threshold", "", "why"), gates, right=("value", "threshold"))
    console.print(f"[dim]{page}[/]")


def _show_replicas(as_json: bool) -> None:
    """Prints what every replica serves and holds, and its problem if any."""
    from tasks.board.replicas import fetch_states, replica_lines
    from tasks.pipelines.common import replicas_of
    from tasks.registry import INDEX_MODEL

    live = open_registry().aliases(INDEX_MODEL).get("live", "")
    lines = replica_lines(fetch_states(replicas_of(Settings.load())), live)
    if as_json:
        print_json({"live": live, "replicas": lines})
        return
    console.print(f"live: {'version ' + live if live else 'nothing yet'}")
    for line in lines:
        slots = "; ".join(f"{s.name}: {'version ' + s.version if s.version else 'nothing'} {s.state}" for s in line.slots)
        console.print(f"{line.url}  serves {'version ' + line.live if line.live else 'nothing'}; {slots}")
        if line.problem:
            console.print(f"  [red]{escape(line.problem)}[/]")


def diff(
    before: Annotated[str, typer.Argument(help="an index version, by number or alias")],
    after: Annotated[str, typer.Argument(help="the version to compare with")],
    photos: Annotated[int, typer.Option(min=0, help="held-out photos to search in both")] = 30,
    as_json: AsJson = False,
) -> None:
    """Compare two index versions: products, files, gates, and answers to the same photos."""
    from tasks.release.diff import difference

    registry = open_registry()
    before, after = (find_version(registry, name).version for name in (before, after))
    found = difference(registry, before, after, photos)
    if as_json:
        print_json(found)
        return
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
            console.print(f"    {name}: {escape(', '.join(ids))}{', …' if getattr(made, name) > len(ids) else ''}")
    console.print(f"  files: {found.files_kept} of {found.files_after} are the same; {found.new_bytes / MIB:.2f} MiB are new")
    columns = ("gate", f"version {before}", f"version {after}", "change")
    print_table(
        columns, [(f.name, _figure(f.before), _figure(f.after), _difference(f)) for f in found.figures], right=columns[1:]
    )
    if found.answers:
        _print_answers(found.answers, before, after)


def _print_answers(answers: Sequence[Any], before: str, after: str) -> None:
    """What photos found in both versions, and the ten that moved most."""
    kept, n = sum(a.kept for a in answers) / len(answers), len(answers)
    hits = [sum(0 < place <= 10 for place in places) for places in zip(*((a.before, a.after) for a in answers), strict=True)]
    console.print(f"{n} photos: {kept:.0%} of the top 20 are the same; Recall@10 {hits[0]} -> {hits[1]} of {n}")
    moved = sorted((a for a in answers if a.before != a.after), key=lambda a: a.kept)[:10]
    if moved:
        rows = [(Path(a.photo).name, a.shows, _place(a.before), _place(a.after), f"{a.kept:.0%}") for a in moved]
        print_table(("photo", "shows", f"place in {before}", f"place in {after}", "top 20 kept"), rows)


def garbage(
    delete: Annotated[bool, typer.Option("--delete", help="delete it; default: list only")] = False,
    versions: Annotated[int, typer.Option(min=0, help="newest versions to keep; 0: the setting VITRINE_KEEP_VERSIONS")] = 0,
    as_json: AsJson = False,
) -> None:
    """List what no kept index version needs, or, with --delete, remove it."""
    from tasks.pipelines.collect_garbage import collect_with_lease, retention_of
    from tasks.release.retention.garbage import plan_garbage

    chosen = Settings.load()
    if delete:
        done = collect_with_lease(chosen, open_registry(), "vitrine release garbage", versions)
        print_answer(done, done.summary.replace("to collect", "collected"), as_json)
        return
    plan = plan_garbage(open_registry(), chosen.store_uri, retention_of(chosen, versions))
    if plan.items and not as_json:
        rows = [(item.kind, item.name, f"{item.bytes / MIB:.1f}", item.reason) for item in plan.items]
        print_table(("what", "name", "MiB", "why"), rows, right=("MiB",))
    print_answer(plan, plan.summary + ("; --delete removes it" if plan.items else ""), as_json)


def _made(registry, version):  # type: ignore[no-untyped-def]
    from serving.contract.files import ContractError
    from tasks.board.timeline import LoadedVersion

    try:
        return LoadedVersion(version, registry.manifest_of(version))
    except ContractError as error:
        return LoadedVersion(version, None, str(error))


def _verdict(passed: bool) -> Text:
    return Text("passed", "green") if passed else Text("failed", "red")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _difference(figure: Any) -> str:
    return "" if figure.before is None or figure.after is None else f"{figure.after - figure.before:+.4g}"


def _place(place: int) -> str:
    return str(place) if place else "not among 20"


def _change(what: str, before: str, after: str) -> None:
    console.print(f"  {what}: {escape(before)}" + (f" -> [bold]{escape(after)}[/]" if after != before else ", the same"))
