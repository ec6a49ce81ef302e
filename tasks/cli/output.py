"""Shared by all commands: text, tables and JSON on standard output, progress on standard error, the registry, and version lookup."""

import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.settings import Settings
from tasks.worker_disk import CACHE

console = Console(highlight=False, soft_wrap=True, emoji=False)  # a path may hold :x:
progress = Console(stderr=True, highlight=False, emoji=False)
"""Where waiting is shown, so that standard output holds the answer alone."""
WORD = 10
"""A cell's words of up to this width (dates, numbers, states) are broken last in a narrow terminal."""
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Collection[str] = (), title: str | None = None
) -> None:
    """Prints a table as wide as the terminal (80 columns where there is none); longer cells wrap, nothing is cut off.

    Where words would have to be broken, the columns stand closer first. Where not even two characters a column fit, the table is
    wider than the terminal.
    """
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    each = [[column, *(row[number].plain for row in cells)] for number, column in enumerate(columns)]
    room = shutil.get_terminal_size().columns - len(columns) + 1  # without the lines between columns
    padding = 1 if sum(map(_kept_whole, each)) + 2 * len(columns) <= room else 0
    widths = _column_widths(each, room - 2 * padding * len(columns))
    table = Table(show_edge=False, title=title, padding=(0, padding), pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", width=width)
    for row in cells:
        table.add_row(*row)
    whole = sum(widths) + 2 * padding * len(columns) + len(columns) - 1
    Console(highlight=False, width=max(whole, 1)).print(table)  # a console's own width would cut what is wider


def _column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of columns of cells: what their longest lines take; or, so that the sum is within `room`, less for the longest columns,
    and as a last resort less than their words take."""
    longest = [max((cell_len(line) for cell in column for line in cell.splitlines()), default=0) for column in columns]
    kept = [_kept_whole(column) for column in columns]
    least = 2  # a character may take two places
    limits = [(limit, WORD) for limit in range(min(max(longest, default=0), room), least, -1)]
    for limit, word in [*limits, *((least, word) for word in range(WORD, least, -1))]:
        widths = [max(min(line, limit), min(words, word), 1) for line, words in zip(longest, kept, strict=True)]
        if sum(widths) <= room:
            return widths
    return [max(min(line, least), 1) for line in longest]


def _kept_whole(column: Sequence[str]) -> int:
    """The width that a column's words of up to WORD need, so that none is broken."""
    return max((width for cell in column for word in cell.split() if (width := cell_len(word)) <= WORD), default=0)


def print_json(value: Any, indent: int | None = 1) -> None:
    """Prints dataclasses, models, arrays and plain values as one JSON document; what is not a number is null."""
    typer.echo(to_json(value, indent=indent, inf_nan_mode="null", fallback=_plain).decode())


def print_answer(value: Any, sentence: str, as_json: bool) -> None:
    """Prints `value` as JSON, or the sentence that says it."""
    if as_json:
        print_json(value)
    else:
        console.print(sentence, markup=False)


def _plain(value: Any) -> Any:
    """NumPy's arrays and numbers as Python's."""
    return value.tolist()


def open_registry(cache: Path | None = None) -> Any:
    """The MLflow registry of the settings; `cache` is the folder of fetched files (default: below VITRINE_HOME)."""
    from tasks.registry import Registry
    from tasks.registry.binding import trust_of

    chosen = Settings.load()
    return Registry(
        chosen.mlflow_uri, cache or chosen.home / CACHE, chosen.mlflow_page, trust=trust_of(chosen), endpoint=chosen.endpoint
    )


def find_version(registry: Any, name: str) -> Any:
    """An index version by number or alias; "" is the live one."""
    from tasks.registry import INDEX_MODEL

    return registry.resolve(INDEX_MODEL, name) if name else registry.require_alias(INDEX_MODEL, "live")


def version_number(name: str) -> str:
    """The number of an index version by number or alias; "" stays "", for commands with another default."""
    return find_version(open_registry(), name).version if name else ""
