"""`vitrine trace`: where an answer comes from."""

from typing import Annotated

import typer

from tasks.cli.output import console, open_registry


def trace(product_id: str, version: Annotated[str, typer.Option(help="an index version; default: live")] = "") -> None:
    """Where an answer comes from: picture, embedding part, shard segment, index version, encoder version."""
    from tasks.release.trace import trace_product

    for step, value in trace_product(open_registry(), product_id, version):
        console.print(f"{step:<16} {value}")
