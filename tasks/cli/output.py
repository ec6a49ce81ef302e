"""What every command shares: the console it writes to, the registry it asks, and how a version is named."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tasks.settings import Settings

console = Console(highlight=False, soft_wrap=True)


def open_registry(cache: Path | None = None) -> Any:
    """The MLflow registry that the settings name; `cache` is where fetched files are kept (default: below VITRINE_HOME)."""
    from tasks.registry import Registry

    chosen = Settings.load()
    return Registry(chosen.mlflow_uri, cache or chosen.home / "cache", chosen.mlflow_page)


def find_version(registry: Any, name: str) -> Any:
    """The index version that a person names, by its number or an alias; "" is what is live."""
    from tasks.registry import INDEX_MODEL

    return registry.resolve(INDEX_MODEL, name) if name else registry.require_alias(INDEX_MODEL, "live")


def version_number(name: str) -> str:
    """The number of the index version that a person names; "" stays, for commands with another default."""
    return find_version(open_registry(), name).version if name else ""
