"""What a check of the catalogue found wrong, and the reading of a table whose rows are checked one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tasks.validate.rows import Row, Table

SHOWN = 20
"""Rows of one kind that are named; the others are counted."""


@dataclass
class Findings:
    """Problems as sentences, and notes that need no action."""

    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, headline: str, lines: list[str]) -> None:
        self.wrong.append("\n".join([headline, *(f"    {line}" for line in shorten(lines))]))


def shorten(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def checked_rows(
    table: Table, required: tuple[str, ...], problems: Callable[[Row], Iterator[str]], findings: Findings, most: float = 0.0
) -> list:
    """The (place, row) of readable rows; problems of the others go to the findings, one sentence each.

    Where their share is at most `most` they are a note: such rows are left out.
    """
    missing = [table.as_written(n) for n in required if n not in table.columns]
    if missing:
        names = ", ".join(missing)
        findings.wrong.append(f"{table.name}: the columns missing are {names}; found {', '.join(table.written) or 'none'}")
        return []
    rows, usable, wrong, count, bad = [], list[bool](), [], 0, 0
    for place, row in table.rows():
        count += 1
        told = [row] if isinstance(row, str) else list(problems(row))
        wrong += [f"{table.name} {place}: {what}" for what in told]
        bad += bool(told)
        if not isinstance(row, str):
            rows.append((place, row))
            usable.append(not told)
    if wrong and bad <= most * count:
        rows = [row for row, used in zip(rows, usable, strict=True) if used]
        findings.notes.append(f"{bad} of {count} rows cannot be used and are left out: {'; '.join(shorten(wrong)[:5])}")
    else:
        findings.wrong += shorten(wrong)
    if not wrong:
        table.read()  # what only the conversion itself notices
    return rows
