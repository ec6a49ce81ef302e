"""What every command shares: the console it writes to and the registry it asks."""

from typing import Any

from rich.console import Console

from tasks.settings import Settings

console = Console(highlight=False, soft_wrap=True)


def open_registry() -> Any:
    """The MLflow registry that the settings name."""
    from tasks.registry import Registry

    chosen = Settings.load()
    return Registry(chosen.mlflow_uri, chosen.home / "cache", chosen.mlflow_page)
