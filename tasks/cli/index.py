"""`vitrine index`: the index versions in the registry."""

import typer
from rich.table import Table

from tasks.cli.output import console, open_registry

app = typer.Typer(help="Index versions in the registry.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `list` a subcommand while it is the only one."""


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
