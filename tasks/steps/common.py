"""What the steps of all pipelines share: settings, the registry, a run's work folder, and the snapshot."""

from dataclasses import asdict
from pathlib import Path

from tasks import storage
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.registry import Registry
from tasks.settings import Settings


def settings() -> Settings:
    return Settings.load()


def registry(chosen: Settings | None = None) -> Registry:
    chosen = chosen or settings()
    return Registry(chosen.mlflow_uri, chosen.home / "cache")


def work_folder(run_key: str) -> Path:
    """Where a run keeps what only its own steps need; survives retries."""
    folder = settings().home / "work" / run_key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def snapshot(run_key: str) -> dict:
    """The catalogue as it is now, as an immutable snapshot named after the run."""
    chosen = settings()
    return asdict(take_snapshot(chosen.catalog_uri, storage.join(chosen.store_uri, "snapshots"), run_key))


def as_snapshot(record: dict) -> Snapshot:
    return Snapshot(**record)
