"""`vitrine changes`: send product changes, count what is pending, list and requeue dead letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tasks.catalog.changes.source import ChangeSource
from tasks.cli.output import console
from tasks.errors import CatalogError
from tasks.settings import Settings, mask

app = typer.Typer(help="Catalogue changes waiting to be indexed, and dead letters.", no_args_is_help=True)
SHOWN = 20


@app.command("send")
def send(
    what: Annotated[list[str], typer.Argument(help="product ids, or files (products.csv or .parquet) of whole products")],
    delete: Annotated[bool, typer.Option("--delete", help="send deletes instead of upserts")] = False,
) -> None:
    """Send upserts (or, with --delete, deletes) of products to the queue that VITRINE_CHANGES names."""
    from tasks.catalog.changes.event import MalformedEvent
    from tasks.catalog.changes.event import delete as gone
    from tasks.catalog.changes.sending import events_of_catalogue, events_of_file
    from tasks.catalog.sources.settings import source_options

    chosen, now = Settings.load(), datetime.now(UTC)
    files = [Path(w) for w in what if w.endswith((".csv", ".parquet"))]
    ids = [w for w in what if Path(w) not in files]
    try:
        events = [e for f in files for e in events_of_file(f, now, source_options(chosen))]
        events += [] if delete else events_of_catalogue(chosen.catalog_uri, ids, now, source_options(chosen))
    except MalformedEvent as error:
        raise CatalogError(str(error)) from None
    if delete:
        events = [gone(i, now) for i in [*(e.product_id for e in events), *ids]]
    with _queue() as source:
        source.send(events)
        kind = "deletes" if delete else "upserts"
        console.print(f"{len(events)} {kind} sent to the {source.name} ({_catalogue()}); {source.count_waiting()} pending")


@app.command("waiting")
def waiting() -> None:
    """Count pending changes and dead letters."""
    with _queue() as source:
        console.print(
            f"{source.name} ({_catalogue()}): {source.count_waiting()} wait, {source.count_dead_letters()} dead letters"
        )


@app.command("dead")
def dead(limit: Annotated[int, typer.Option(min=1, help="how many to show")] = SHOWN) -> None:
    """List dead letters with their reasons, newest first."""
    table = Table(show_edge=False)
    for column in ("since", "reason", "message"):
        table.add_column(column)
    with _queue() as source:
        for letter in source.dead_letters(limit):
            table.add_row(f"{letter.at:%Y-%m-%d %H:%M:%S} UTC" if letter.at else "", letter.reason, letter.text)
    console.print(table)


@app.command("requeue")
@app.command("revive", hidden=True)  # its name before
def requeue() -> None:
    """Send every dead letter back to the queue, once its cause is fixed."""
    with _queue() as source:
        console.print(f"{source.requeue()} dead letters sent to the {source.name} again")


@app.command("capture")
def capture(
    off: Annotated[bool, typer.Option("--off", help="remove the triggers again")] = False,
) -> None:
    """Install (or remove) database triggers that write every change of `products` to the outbox."""
    from tasks.catalog.changes.capture import install_triggers, remove_triggers

    chosen = Settings.load()
    if off:
        remove_triggers(chosen.catalog_uri)
        console.print("changes of products no longer go to the outbox of the catalogue")
        return
    for name, reason in install_triggers(chosen.catalog_uri).items():
        console.print(f"the column {name} is not captured: {reason}", markup=False)
    console.print("changes of products go to the outbox of the catalogue")


def _catalogue() -> str:
    return f"catalogue {mask('catalog', Settings.load().catalog_uri)}"


@contextmanager
def _queue() -> Iterator[ChangeSource]:
    from tasks.catalog.changes.source import open_changes

    chosen = Settings.load()
    with open_changes(chosen.changes, chosen.catalog_uri, chosen.home) as source:
        yield source
