"""`vitrine changes`: send product changes, count what is pending, list and requeue dead letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.catalog.changes.source import ChangeSource
from tasks.cli.output import AsJson, print_answer, print_json, print_table
from tasks.errors import CatalogError
from tasks.masking import mask
from tasks.settings import Settings

app = typer.Typer(help="Catalogue changes waiting to be indexed, and dead letters.", no_args_is_help=True)
SHOWN = 20


@app.command("send")
def send(
    what: Annotated[list[str], typer.Argument(help="product ids, or files (products.csv or .parquet) of whole products")],
    delete: Annotated[bool, typer.Option("--delete", help="send deletes instead of upserts")] = False,
    as_json: AsJson = False,
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
        state = _state(source)
    sentence = f"{len(events)} {kind} sent to the {state['queue']} (catalogue {state['catalogue']}); {state['waiting']} pending"
    print_answer(state | {"sent": len(events), "kind": kind}, sentence, as_json)


@app.command("waiting")
def waiting(as_json: AsJson = False) -> None:
    """Count pending changes and dead letters."""
    with _queue() as source:
        state = _state(source)
    sentence = f"{state['queue']} (catalogue {state['catalogue']}): {state['waiting']} wait, {state['dead_letters']} dead letters"
    print_answer(state, sentence, as_json)


@app.command("dead")
def dead(limit: Annotated[int, typer.Option(min=1, help="how many to show")] = SHOWN, as_json: AsJson = False) -> None:
    """List dead letters with their reasons, newest first."""
    with _queue() as source:
        letters = list(source.dead_letters(limit))
    if as_json:
        print_json(letters)
        return
    since = [f"{letter.at:%Y-%m-%d %H:%M:%S} UTC" if letter.at else "" for letter in letters]
    print_table(("since", "reason", "message"), [(at, x.reason, x.text) for at, x in zip(since, letters, strict=True)])


@app.command("requeue")
@app.command("revive", hidden=True)  # its name before
def requeue(as_json: AsJson = False) -> None:
    """Send every dead letter back to the queue, once its cause is fixed."""
    with _queue() as source:
        count, state = source.requeue(), _state(source)
    print_answer(state | {"requeued": count}, f"{count} dead letters sent to the {state['queue']} again", as_json)


@app.command("capture")
def capture(
    off: Annotated[bool, typer.Option("--off", help="remove the triggers again")] = False,
    as_json: AsJson = False,
) -> None:
    """Install (or remove) database triggers that write every change of `products` to the outbox."""
    from tasks.catalog.changes.capture import install_triggers, remove_triggers

    chosen = Settings.load()
    shown = mask("catalog", chosen.catalog_uri)
    if off:
        remove_triggers(chosen.catalog_uri)
        print_answer(
            {"capture": False, "catalogue": shown}, "changes of products no longer go to the outbox of the catalogue", as_json
        )
        return
    if chosen.catalog_columns or chosen.catalog_query:
        raise CatalogError(
            "triggers capture the table products as it is, and VITRINE_CATALOG_COLUMNS or VITRINE_CATALOG_QUERY makes another of it; "
            "find its changes with VITRINE_CHANGES=compare: instead"
        )
    left_out = install_triggers(chosen.catalog_uri)
    lines = [f"the column {name} is not captured: {reason}" for name, reason in left_out.items()]
    lines.append("changes of products go to the outbox of the catalogue")
    print_answer({"capture": True, "catalogue": shown, "left_out": left_out}, "\n".join(lines), as_json)


def _state(source: ChangeSource) -> dict[str, Any]:
    """The queue, whose changes it holds, and how many wait."""
    catalogue = mask("catalog", Settings.load().catalog_uri)
    waiting, dead_letters = source.count_waiting(), source.count_dead_letters()
    return {"queue": source.name, "catalogue": catalogue, "waiting": waiting, "dead_letters": dead_letters}


@contextmanager
def _queue() -> Iterator[ChangeSource]:
    from tasks.catalog.changes.source import open_changes

    chosen = Settings.load()
    with open_changes(chosen.changes, chosen.catalog_uri, chosen.home) as source:
        yield source
