"""Every setting explained, for `vitrine settings`, and docs/operate/settings.md, whose table `make docs` writes."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from serving.settings import ServingSettings
from tasks.settings import PROJECT, Settings, variable

PAGE = PROJECT / "docs" / "operate" / "settings.md"
BEGIN, END = "<!-- begin: written by make docs -->", "<!-- end -->"
READERS = {Settings: "pipeline", ServingSettings: "replica"}


@dataclass(frozen=True)
class Explained:
    """A setting: its environment variable, heading, meaning, and a default and an example as one would write them."""

    variable: str
    area: str
    means: str
    default: str
    example: str


def explain(of: type[Any]) -> dict[str, Explained]:
    """The settings of a class by field name, in the order of its areas; a field that is no `setting(…)` is explained by nothing."""
    explained, area = {}, ""
    for spec in fields(of):
        area = spec.metadata.get("area") or area
        means, example = spec.metadata.get("means", ""), spec.metadata.get("example", "")
        explained[spec.name] = Explained(variable(spec.name), area, means, _written(spec.default), example)
    return explained


def _written(default: Any) -> str:
    """A default as one would set it; paths of this clone begin with <project>."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return str(default).replace(str(PROJECT), "<project>")


def settings_table() -> str:
    """One Markdown table of all settings; a row of its own heads each area."""
    lines = ["| setting | meaning | default | example |", "|---|---|---|---|"]
    for of, reader in READERS.items():
        area = ""
        for setting in explain(of).values():
            if setting.area != area:
                area = setting.area
                lines.append(f"| **{reader}: {area}** | | | |")
            cells = (_text(setting.means), _code(setting.default), _code(setting.example))
            lines.append(f"| `{setting.variable}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(text: str) -> str:
    """A sentence of a cell: `|` would end the cell, and `<` begin a tag, except between backticks."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if text else ""


def with_table(page: str) -> str:
    """The page with the table between its two marks replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{rest.split(END, 1)[1]}"


def main(page: Path = PAGE) -> None:
    """Writes the table into the page."""
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main()
