"""Writes the settings file of a home, which only its owner may read."""

from dataclasses import fields
from pathlib import Path

from tasks.errors import SettingsError
from tasks.private_file import write_private
from tasks.settings import HOME_FILE, Settings, as_text, variable


def write_home_file(settings: Settings, always: tuple[str, ...]) -> Path:
    """Stores settings below their home, mode 0600: those that differ from the defaults, and those named in `always`.

    Raises SettingsError for a value of more than one line.
    """
    chosen = [s for s in fields(Settings) if s.name in always or getattr(settings, s.name) != s.default]
    lines = ["# Written by make demo and make up, anew each time; settings of your own belong into the environment or .env."]
    for spec in chosen:
        text = as_text(getattr(settings, spec.name))
        if len(text.splitlines()) > 1:
            raise SettingsError(f"{variable(spec.name)} has more than one line; give a value of one line")
        if spec.name != "home":
            lines.append(f"{variable(spec.name)}='{text}'")
    return write_private(settings.home / HOME_FILE, "\n".join(lines) + "\n")
