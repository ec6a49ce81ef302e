"""`vitrine trace`: the lineage of a product."""

from typing import Annotated

import typer

from tasks.cli.output import console, find_version, open_registry


def trace(
    product_id: str, version: Annotated[str, typer.Option(help="an index version, by number or alias; default: live")] = ""
) -> None:
    """Trace a product: picture, embedding part, shard segment, index version, encoder version."""
    from tasks.release.trace import trace_product

    registry = open_registry()
    for step, value in trace_product(registry, product_id, find_version(registry, version).version):
        console.print(f"{step:<16} {value}")
