"""`vitrine settings`: every setting with its value, where that came from, and what it means."""

import os
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding

from tasks.cli.output import AsJson, console, print_json
from tasks.errors import SettingsError
from tasks.masking import mask
from tasks.settings import Settings, read_settings
from tasks.settings_page import explain


def settings(
    word: Annotated[str, typer.Argument(help="only settings whose name or meaning has this word")] = "",
    serving: Annotated[
        bool, typer.Option("--serving", help="settings of a replica (vitrine-serve), as this environment gives them")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every setting with its value, source and meaning; secrets are masked."""
    from serving.settings import ServingSettings

    of: type[Any] = ServingSettings if serving else Settings
    values = _of_replica() if serving else read_settings()
    records = [
        {
            "setting": about.variable, "value": mask(name, values[name][0], of), "from": values[name][1], "area": about.area,
            "meaning": about.means, "default": about.default, "example": about.example,
        }
        for name, about in explain(of).items()
        if word.lower() in f"{about.variable} {about.area} {about.means}".lower()
    ]  # fmt: skip
    if as_json:
        print_json(records)
        return
    if not records:
        raise SettingsError(f"no setting has {word!r} in its name or meaning; show all: vitrine settings")
    area = ""
    for one in records:
        if one["area"] != area:
            area = one["area"]
            console.print(f"\n[bold]{area}[/]")
        console.print(f"{one['setting']} = {escape(one['value'])}  [dim]({escape(one['from'])})[/]")
        told = one["meaning"] + (f"; example: {one['example']}" if one["example"] else "")
        console.print(Padding(escape(told), (0, 0, 0, 4)), soft_wrap=False)


def _of_replica() -> dict[str, tuple[Any, str]]:
    """A replica's settings and sources: the environment, or the default. Raises SettingsError for what stops a replica's start."""
    from serving.settings import ServingSettings

    try:
        chosen = ServingSettings.load(os.environ)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return {
        name: (getattr(chosen, name), "environment" if about.variable in os.environ else "default")
        for name, about in explain(ServingSettings).items()
    }
