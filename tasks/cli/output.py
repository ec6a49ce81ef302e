"""Shared by all commands: the console, the registry, and version lookup."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tasks.settings import Settings

console = Console(highlight=False, soft_wrap=True)


def open_registry(cache: Path | None = None) -> Any:
    """The MLflow registry of the settings; `cache` is the folder of fetched files (default: below VITRINE_HOME)."""
    from tasks.registry import Registry

    chosen = Settings.load()
    return Registry(chosen.mlflow_uri, cache or chosen.home / "cache", chosen.mlflow_page)


def find_version(registry: Any, name: str) -> Any:
    """An index version by number or alias; "" is the live one."""
    from tasks.registry import INDEX_MODEL

    return registry.resolve(INDEX_MODEL, name) if name else registry.require_alias(INDEX_MODEL, "live")


def version_number(name: str) -> str:
    """The number of an index version by number or alias; "" stays "", for commands with another default."""
    return find_version(open_registry(), name).version if name else ""
