"""Reads files of NAME=value lines, such as .env: # begins a comment, quotes around a value are dropped."""

from pathlib import Path

from tasks.errors import SettingsError


def read_dotenv(path: Path) -> dict[str, str]:
    """The pairs of a file; {} where there is none. Raises SettingsError for a file that cannot be read."""
    if not path.is_file():
        return {}
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the settings in it cannot be read: {error}") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): _unquoted(value.strip()) for key, value in pairs}


def _unquoted(text: str) -> str:
    """A value without the pair of quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
