"""Shared by all commands: text, tables and JSON on standard output, progress on standard error, the registry, and version lookup."""

import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.settings import Settings

console = Console(highlight=False, soft_wrap=True)
progress = Console(stderr=True, highlight=False)
"""Where waiting is shown, so that standard output holds the answer alone."""
WORD = 10
"""A cell's words of up to so many characters (dates, numbers, states) are not broken in a narrow terminal."""
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Collection[str] = (), title: str | None = None
) -> None:
    """Prints a table as wide as the terminal (80 columns where there is none); longer cells wrap, nothing is cut off."""
    table = Table(show_edge=False, title=title, pad_edge=False)
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for number, column in enumerate(columns):
        words = " ".join([column, *(row[number].plain for row in cells)]).split()
        kept_whole = max((len(word) for word in words if len(word) <= WORD), default=0)
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", min_width=kept_whole)
    for row in cells:
        table.add_row(*row)
    console.print(table, soft_wrap=False, width=shutil.get_terminal_size().columns)


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
        chosen.mlflow_uri, cache or chosen.home / "cache", chosen.mlflow_page, trust=trust_of(chosen), endpoint=chosen.endpoint
    )


def find_version(registry: Any, name: str) -> Any:
    """An index version by number or alias; "" is the live one."""
    from tasks.registry import INDEX_MODEL

    return registry.resolve(INDEX_MODEL, name) if name else registry.require_alias(INDEX_MODEL, "live")


def version_number(name: str) -> str:
    """The number of an index version by number or alias; "" stays "", for commands with another default."""
    return find_version(open_registry(), name).version if name else ""
