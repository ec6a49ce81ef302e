"""A look at what is live, over a real MLflow and real replicas that shoppers have asked."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from tasks.registry import INDEX_MODEL, Registry
from tasks.release.promotion.serving_replicas import Replica, wait_for
from tasks.watch.checks import Limits, checks
from tasks.watch.cost import Prices
from tasks.watch.live_metrics import _drifts, measure_live
from tasks.watch.watch_report import write_report
from tests.catalog.changes.refreshed import forget_versions
from tests.registered import TOKEN, Running, Shop, replicas

pytestmark = pytest.mark.slow


@dataclass
class Live:
    shop: Shop
    version: str
    running: list[Running]

    @property
    def replicas(self) -> list[Replica]:
        return [Replica(r.url, TOKEN) for r in self.running]


@pytest.fixture(scope="module")
def live(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("watched")
    shop = Shop(home, Registry(mlflow_uri, home / "cache"), products=24)
    forget_versions(shop.registry)
    version = shop.version()
    shop.point(live=version, blue=version)
    with replicas(mlflow_uri, home, 2, sample_rate=1.0) as running:
        found = Live(shop, version, running)
        wait_for(found.replicas, "serving", lambda s: "" if (s.get("live") or {}).get("version") == version else "not yet", 60)
        yield found


def looked(live: Live, replicas: list[Replica] | None = None):
    told = live.replicas if replicas is None else replicas
    return measure_live(live.shop.registry, told, str(live.shop.home / "data"), Prices(), time.time())


def test_without_shoppers_held_out_photos_are_asked(live: Live) -> None:
    seen = looked(live).figures
    assert (seen.version, seen.real, seen.recall) == (live.version, False, 1.0)
    assert seen.queries == 24
    assert any("recall is measured on held-out photos" in note for note in seen.notes)
    assert seen.embedding_drift is None
    assert all(gate.passed for gate in checks(seen, Limits()))


def test_real_queries_are_measured_and_drift_shows(live: Live, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    dim = live.shop.registry.index_manifest(live.version).encoder.dim

    def ask(n: int, towards: float) -> None:
        for i in range(n):
            vector = rng.standard_normal(dim) + towards * np.eye(dim)[0]
            body = {"vector": (vector / np.linalg.norm(vector)).tolist(), "k": 3}
            httpx.post(f"{live.running[i % 2].url}/v1/search", json=body, timeout=60, trust_env=False).raise_for_status()

    ask(150, 0.0)
    first = looked(live).figures
    assert (first.real, first.queries, first.recall) == (True, 150, 1.0)
    assert first.query_drift == 0.0
    assert any("first measurement" in note for note in first.notes)
    assert first.requests >= 150
    assert first.error_share == 0.0
    assert first.cost_per_thousand_queries > 0
    assert set(first.hit_rates) == {"embedding", "candidates", "response"}
    ask(300, 4.0)
    second = looked(live)
    assert second.figures.query_drift is not None
    assert second.figures.query_drift > 0.25
    table = checks(second.figures, Limits())
    assert [gate.name for gate in table if not gate.passed] == ["query_drift"]
    made = write_report(second, table, tmp_path)
    assert [p.name for p in made] == ["look.json", "query_drift.png"]
    assert all(p.stat().st_size > 500 for p in made)


def test_a_replica_that_is_away_is_named(live: Live) -> None:
    seen = looked(live, [live.replicas[0], Replica("http://127.0.0.1:9", TOKEN)]).figures
    failing = [gate.reason for gate in checks(seen, Limits(drift=1e9)) if not gate.passed]
    assert len(failing) == 1
    assert "http://127.0.0.1:9" in failing[0]


def test_the_step_keeps_a_curve_in_mlflow(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.pipelines import watch_quality

    for name, value in {
        "HOME": str(live.shop.home), "MLFLOW_URI": live.shop.registry.uri, "SERVING_URLS": live.running[0].url, "ADMIN_TOKEN": TOKEN,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"VITRINE_{name}", value)
    record = watch_quality.measure("watch_quality.test")
    assert record.version == live.version
    assert record.compaction == ""
    run_id = record.links["MLflow run"].partition("?")[0].rsplit("/", 1)[1]
    kept = live.shop.registry.client.get_run(run_id)
    assert kept.data.metrics["recall"] == 1.0
    assert live.shop.registry.version(INDEX_MODEL, live.version).version == live.version


def test_titles_are_no_drift_of_pictures(tmp_path: Path) -> None:
    shown = np.arange(150) < 120

    def vector(row: int) -> np.ndarray:
        assert shown[row]
        return np.eye(8, dtype=np.float32)[row % 8]

    searcher = SimpleNamespace(depicted=lambda: shown, vector=vector, dim=8)
    release: Any = SimpleNamespace(searcher=searcher, manifest=SimpleNamespace(encoder=SimpleNamespace(version="1")))
    drifts, _ = _drifts(release, np.zeros((0, 8), np.float32), str(tmp_path))
    assert set(drifts) == {"embedding"}
