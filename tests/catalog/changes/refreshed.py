"""A small live shop whose index is refreshed: a real registry, a real outbox, the tiny encoder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from serving.index.searcher import Searcher
from tasks.catalog.changes.event import Event, delete, upsert
from tasks.catalog.changes.source import ChangeSource, open_changes
from tasks.index.verify_version import check_index
from tasks.pipelines import drain_changes, refresh_index
from tasks.registry import INDEX_MODEL, Registry
from tests.catalogs import picture
from tests.registered import Shop

BEGAN = datetime.now(UTC) - timedelta(hours=1)


class LiveShop:
    """A shop with a live index version below `home`; its settings are in the environment."""

    def __init__(
        self, home: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, products: int = 60, words: bool = False
    ) -> None:
        self.home, self.mlflow_uri = home, mlflow_uri
        self.environment = {
            "VITRINE_HOME": str(home), "VITRINE_CATALOG": str(home / "shop"), "VITRINE_MLFLOW_URI": mlflow_uri,
            "VITRINE_SERVING_URLS": "", "VITRINE_CHANGES": "outbox:", "VITRINE_P99_MS": "60000",
        }  # fmt: skip
        self.monkeypatch = monkeypatch
        self.use()
        self.registry = Registry(mlflow_uri, home / "cache")
        self.shop = Shop(home, self.registry, products, words)
        self.base = self.shop.version()
        self.shop.point(live=self.base, blue=self.base, candidate=self.base)

    def use(self) -> None:
        """Puts this shop's settings into the environment, where there are several shops."""
        for name, value in self.environment.items():
            self.monkeypatch.setenv(name, value)

    @contextmanager
    def queue(self) -> Iterator[ChangeSource]:
        with open_changes(self.environment["VITRINE_CHANGES"], self.environment["VITRINE_CATALOG"], self.home) as source:
            yield source

    def send(self, *events: Event) -> None:
        with self.queue() as source:
            source.send(events)

    def count_waiting(self) -> int:
        with self.queue() as source:
            return source.count_waiting()

    def upsert(self, number: int, minute: int, seed: int | None = None, **columns: object) -> Event:
        """Product `number` as of `minute` after the shop was opened, showing the picture of `seed` (default: its own)."""
        name = f"images/{number}.jpg" if seed is None else f"images/new-{seed}.jpg"
        if not (self.home / "shop" / name).exists():
            picture(self.home / "shop" / name, number if seed is None else seed)
        row = {"title": f"product {number} at {minute}", "image": name, "price": 100.0 + minute, "currency": "EUR"}
        return upsert(f"p{number:03d}", at(minute), row | columns)

    def delete(self, number: int, minute: int) -> Event:
        return delete(f"p{number:03d}", at(minute))

    def refresh(self, run_key: str, **bounds: float) -> Any:
        """The steps of the DAG, in its order; the plan where there is nothing to do."""
        self.use()
        plan = drain_changes.drain(run_key, **bounds)  # type: ignore[arg-type]
        if not plan.due:
            return plan
        embedded = refresh_index.embed(plan)
        registered = refresh_index.register(plan, embedded)
        refresh_index.acknowledge(plan, registered, embedded)
        refresh_index.publish(registered)
        return registered

    def own_files(self, version: str) -> list[tuple[str, str]]:
        """(path, sha256) of the segment files that a version's own run made."""
        run = self.registry.version(INDEX_MODEL, version).run_id
        files = [f for s in self.registry.index_manifest(version).segments for f in (s.index, s.table) if f is not None]
        return sorted((f.path, f.sha256) for f in files if f.run_id == run)

    def searcher(self, version: str) -> Searcher:
        return Searcher.open(self.registry.index_manifest(version), self.registry.file)

    def found(self, version: str) -> dict[str, dict]:
        """What can be found in a version, of which the verifier finds nothing wrong: product id -> its row, with its vector."""
        done = check_index(self.registry.index_manifest(version), self.registry.file)
        assert [(c.name, c.detail) for c in done if not c.passed] == []
        searcher = self.searcher(version)
        rows = np.flatnonzero(searcher.live())
        records = searcher.features.take(rows, ["product_id", "title", "price", "image_uri", "updated_at"])
        return {r["product_id"]: r | {"vector": searcher.vector(int(n))} for r, n in zip(records, rows, strict=True)}


def at(minute: int) -> datetime:
    return BEGAN + timedelta(minutes=minute)


def own_mlflow(home: Path, tables: Path) -> str:
    """A registry in a file of its own, a copy of `tables`, without other tests' versions; several processes may use it."""
    uri = f"sqlite:///{shutil.copy(tables, home / 'mlflow.db')}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for name in ("indexes", "encoders", "promotions"):
        client.create_experiment(name, artifact_location=str(home / "artifacts" / name))
    return uri


def forget_versions(registry: Registry) -> None:
    """Another test's versions in the same MLflow are no relations of ours."""
    if registry.versions(INDEX_MODEL, 1):
        registry.client.delete_registered_model(INDEX_MODEL)
