"""`vitrine index`: the index versions in the registry."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tasks.cli.output import console, open_registry
from tasks.settings import Settings

app = typer.Typer(help="Index versions in the registry.", no_args_is_help=True)


@app.command("list")
def list_versions() -> None:
    """Every index version: its aliases, encoder, products and verdict."""
    from tasks.registry import INDEX_MODEL

    table = Table(show_edge=False)
    for column in ("version", "aliases", "encoder", "products", "gates", "made from"):
        table.add_column(column)
    for found in open_registry().versions(INDEX_MODEL):
        tags = found.tags
        table.add_row(
            found.version, ", ".join(found.aliases), tags.get("encoder_version", ""), tags.get("products", ""),
            tags.get("verdict", ""), tags.get("snapshot", ""),
        )  # fmt: skip
    console.print(table)


Chosen = Annotated[str, typer.Argument(help="an index version; default: live")]


@app.command("check")
def check(version: Chosen = "") -> None:
    """Open a version as a stranger would and verify all of it: files, segments, keys, counts, snapshot, encoder, golden answers."""
    from tasks import storage
    from tasks.index.check import check_index
    from tasks.registry import INDEX_MODEL

    models = open_registry()
    found = models.version(INDEX_MODEL, version) if version else models.require_alias(INDEX_MODEL, "live")
    manifest = models.index_manifest(found.version)
    # An hourly version holds what its snapshot does not have yet; only a base can be held against it.
    whole = all(s.kind == "base" for s in manifest.segments)
    uri = manifest.snapshot.uri if whole and storage.exists(storage.join(manifest.snapshot.uri, "_manifest.json")) else ""
    table = Table(show_edge=False)
    for column in ("check", "", "what was seen"):
        table.add_column(column)
    done = check_index(manifest, models.file, uri, models.encoder_folder(manifest.encoder.version))
    for one in done:
        table.add_row(one.name, "[green]holds[/]" if one.passed else "[bold red]BROKEN[/]", one.detail)
    console.print(table)
    broken = [one.name for one in done if not one.passed]
    console.print(f"index version {found.version}: " + (f"broken: {', '.join(broken)}" if broken else "every check holds"))
    if broken:
        raise typer.Exit(1)


@app.command("tuning")
def tuning(
    version: Chosen = "",
    plot: Annotated[Path | None, typer.Option(help="write the plot of recall against time to this PNG")] = None,
) -> None:
    """What was tried when a version was tuned: every point with its recall, times and verdict, and why its family was taken."""
    import json

    from tasks.index.report import tuning_plot
    from tasks.index.tune import Tuned
    from tasks.registry import INDEX_MODEL, INDEX_PATH

    models = open_registry()
    found = models.version(INDEX_MODEL, version) if version else models.require_alias(INDEX_MODEL, "live")
    base = next(s for s in models.index_manifest(found.version).segments if s.index is not None)
    assert base.index is not None
    path = models.fetch(base.index.run_id, f"{INDEX_PATH}/tuning.json", models.cache / "tuning" / base.index.run_id)
    tuned = Tuned(**json.loads(path.read_text()))
    table = Table(show_edge=False, title=f"{tuned.search['family']}, {tuned.queries} held-out photos, {tuned.clients} at a time")
    for column in ("parameters", "recall@10", "in candidates", "p50 ms", "p99 ms", "QPS", "Pareto", "verdict"):
        table.add_column(column)
    for t in tuned.trials:
        params = ", ".join(f"{n} {v}" for n, v in t["params"].items())
        figures = [
            f"{t['recall_at_10']:.3f}",
            f"{t['within_candidates']:.3f}",
            f"{t['p50_ms']:.2f}",
            f"{t['p99_ms']:.2f}",
            f"{t['qps']:.0f}",
        ]
        table.add_row(params, *figures, "yes" if t["pareto"] else "", t["verdict"])
    console.print(table)
    for name, why in tuned.families.items():
        console.print(f"{name:<16} {why}")
    if plot is not None:
        tuning_plot(tuned, plot, Settings.load().recall_target)
        console.print(f"plot in {plot}")
