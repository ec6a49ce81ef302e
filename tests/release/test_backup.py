"""Backup and restore as docs/operate/backup.md says: MLflow's database and artifacts, the store, the catalogue with its queue."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tasks.registry import INDEX_MODEL, Registry
from tests.catalog.changes.refreshed import LiveShop, own_mlflow

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STATE = ("artifacts", "shop", "catalog", "data")
"""What lies beside MLflow's database: its artifacts, the shop's catalogue, its queue, the store. Nothing else is kept."""


def back_up(home: Path, backup: Path) -> None:
    """The database first, while it is in use; then the files, which hold all that it names."""
    backup.mkdir()
    with closing(sqlite3.connect(home / "mlflow.db")) as database, closing(sqlite3.connect(backup / "mlflow.db")) as copy:
        database.backup(copy)
    for name in STATE:
        if (home / name).exists():
            shutil.copytree(home / name, backup / name)


def test_everything_is_deleted_and_restored_and_the_next_hour_goes_on(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    home.mkdir()
    live = LiveShop(home, own_mlflow(home, mlflow_tables), monkeypatch)
    live.send(live.upsert(3, 1), live.upsert(90, 1, seed=90), live.delete(7, 2))
    hour = live.refresh("r1").version
    live.registry.set_alias(INDEX_MODEL, "live", hour)
    live.send(live.upsert(91, 3, seed=91))
    before, aliases = live.found(hour), live.registry.aliases(INDEX_MODEL)
    query = before["p005"]["vector"][None, :]
    answers = live.searcher(hour).search(query, 20)
    back_up(home, backup)

    shutil.rmtree(home)
    shutil.copytree(backup, home)
    started_again = f"sqlite:///{home}/./mlflow.db"  # another address, so that no connection to the deleted file is used
    live.environment["VITRINE_MLFLOW_URI"] = started_again
    live.registry = Registry(started_again, home / "cache")
    assert live.registry.aliases(INDEX_MODEL) == aliases
    after = live.found(hour)
    assert after.keys() == before.keys()
    again = live.searcher(hour).search(query, 20)
    np.testing.assert_array_equal(again.rows, answers.rows)
    np.testing.assert_array_equal(again.similarity, answers.similarity)
    assert live.count_waiting() == 1
    made = live.refresh("r2")
    assert made.passed, made.summary
    assert live.found(made.version).keys() == before.keys() | {"p091"}
