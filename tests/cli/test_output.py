"""Every command: `--json` is offered and is one JSON document, and a table fits the terminal without losing a character."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from tasks.capacity.service_times import write_times
from tasks.capacity.simulation import Times
from tasks.cli import app
from tasks.cli.output import print_json, print_table
from tests.catalogs import small_catalog


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All subcommands below a command of click, by their words."""
    if not hasattr(group, "commands"):
        yield path, group
        return
    for name, command in group.commands.items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
WITHOUT_SERVERS = [
    ("catalog", "sample", "made", "--products", "2"),
    ("catalog", "load", "shop", "--database", "sqlite:///shop.db"),
    ("changes", "send", "p001"),
    ("changes", "waiting"),
    ("changes", "dead"),
    ("changes", "requeue"),
    ("changes", "revive"),
    ("capacity", "--times", "times.json"),
    ("settings",),
]
"""Commands that need no server, as they are run in a folder with a catalogue in `shop`."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_catalog(tmp_path / "shop", 5)
    write_times(tmp_path / "times.json", Times(*np.full((4, 50), 0.5), products=10_000_000))
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path))
    monkeypatch.setenv("VITRINE_CATALOG", str(tmp_path / "shop"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_can_answer_in_json(words: tuple[str, ...]) -> None:
    assert "--json" in {option for parameter in COMMANDS[words].params for option in parameter.opts}


@pytest.mark.parametrize("words", WITHOUT_SERVERS, ids=" ".join)
def test_with_json_standard_output_is_one_document_and_without_it_fits_80_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert isinstance(json.loads(done.stdout), dict | list)
    text = CliRunner().invoke(app, list(words), catch_exceptions=False).stdout
    table = [line for line in text.splitlines() if "│" in line]
    assert all(len(line) <= 80 for line in table), text


def test_a_long_table_wraps_and_keeps_every_character(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("name", "why"), [("x" * 50, '["a", "b"] is no [markup] ' * 4)])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 40
    assert told.count("x") == 50
    assert told.count("[markup]") == 4


@pytest.mark.parametrize("width", [100, 80, 60, 40, 20, 5])
def test_a_table_of_many_columns_loses_no_character_in_any_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("version", "status", "made", "encoder", "products", "in deltas", "MiB", "gates")
    row = ("2", "live, candidate, green", "2026-12-01 22:53", "1", "10,000,000", "0.0%", "商品商品商品", "12 passed")
    print_table(columns, [row])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= max(width, 3 * len(columns) - 1)
    split = [line.replace("┃", "│").split("│") for line in lines if "━" not in line]
    told = ["".join(cells).replace(" ", "") for cells in zip(*split, strict=True)]
    assert told == [f"{column}{cell}".replace(" ", "") for column, cell in zip(columns, row, strict=True)]


def test_a_narrow_table_breaks_lines_between_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("version", "status", "made", "encoder", "products", "in deltas", "MiB", "gates")
    print_table(columns, [("2", "live, candidate, green", "2026-12-01 22:53", "1", "10,000,000", "0.0%", "7,812.5", "12 passed")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    cells = {cell.strip() for line in lines for cell in line.replace("┃", "│").split("│")}
    assert {"candidate,", "2026-12-01", "22:53", "10,000,000", "7,812.5", "products", "12 passed"} <= cells


def test_a_column_without_a_character_and_no_column_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("", "a"), [("", "b")])
    assert [line.split() for line in capsys.readouterr().out.splitlines()][::2] == [["┃", "a"], ["│", "b"]]
    print_table((), [])


def test_what_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"mean": float("nan"), "row": np.arange(2), "one": np.float32(0.5), "path": Path("a")})
    assert json.loads(capsys.readouterr().out) == {"mean": None, "row": [0, 1], "one": 0.5, "path": "a"}
