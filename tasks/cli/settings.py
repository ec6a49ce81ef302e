"""`vitrine settings`: show all settings and their sources."""

from rich.table import Table

from tasks.cli.output import console
from tasks.settings import mask, read_settings


def settings() -> None:
    """Show every setting with its value and source; secrets are masked."""
    table = Table(show_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for name, (value, source) in read_settings().items():
        table.add_row(f"VITRINE_{name.upper()}", mask(name, value), source)
    console.print(table)
