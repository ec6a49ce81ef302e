"""`vitrine trace`: the lineage of a product."""

from typing import Annotated

import typer

from tasks.cli.output import AsJson, console, find_version, open_registry, print_json


def trace(
    product_id: str,
    version: Annotated[str, typer.Option(help="an index version, by number or alias; default: live")] = "",
    as_json: AsJson = False,
) -> None:
    """Trace a product: picture, embedding part, shard segment, index version, encoder version."""
    from tasks.release.trace import trace_product

    registry = open_registry()
    steps = trace_product(registry, product_id, find_version(registry, version).version)
    if as_json:
        print_json([{"step": step, "value": value} for step, value in steps])
        return
    for step, value in steps:
        console.print(f"{step:<16} {value}", markup=False)
