"""Every DAG run in one process on a tiny shop: a real MLflow, real replicas, Airflow without its servers."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serving.index.searcher import Searcher
from tasks.catalog.changes.source import open_changes
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Registry
from tasks.settings import Settings
from tests.airflow_server import airflow, environment
from tests.catalog.changes.refreshed import forget_versions
from tests.registered import TOKEN, Shop, replicas
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_every_dag_runs_to_its_end(mlflow_uri: str, airflow_tables: Path, tmp_path: Path) -> None:
    registry = Registry(mlflow_uri, tmp_path / "cache")
    forget_versions(registry)
    shop = Shop(tmp_path, registry, products=24)
    one, two = shop.version(), shop.version()
    shop.point(blue=one, live=one, candidate=two)
    registry.set_alias(ENCODER_MODEL, "champion", shop.encoder())
    with replicas(mlflow_uri, tmp_path, 2) as running:
        settings = replace(
            Settings(), home=tmp_path, catalog=str(tmp_path / "shop"), mlflow_uri=mlflow_uri, airflow_password="admin",
            airflow_url=f"http://127.0.0.1:{free_port()}", serving_urls=tuple(r.url for r in running),
            admin_token=TOKEN, bake_s=0.5, p99_ms=5000.0, encoder_preset="tiny",
        )  # fmt: skip
        environ = environment(settings, airflow_tables)
        runs = [
            ["promote_index", {}], ["promote_index", {}], ["rollback_index", {}], ["promote_index", {"version": "99"}],
            ["refresh_index", {}], ["rebuild_index", {}], ["watch_quality", {}], ["collect_garbage", {}],
            ["watch_champion", {}], ["train_encoder", {}],
        ]  # fmt: skip
        with open_changes(settings.changes, settings.catalog_uri, settings.home) as source:
            source.make_tables()  # type: ignore[attr-defined]
            source.database.execute("INSERT INTO outbox (event) VALUES ('nonsense')")  # type: ignore[attr-defined]
        told = airflow(environ, "tests.dags.in_process", json.dumps(runs))
        serving = [httpx.get(f"{r.url}/v1/version", trust_env=False).json()["live"]["version"] for r in running]
    done = [json.loads(line[4:]) for line in told.splitlines() if line.startswith("RUN ")]
    first, again, back, missing, hour, night, watch, garbage, champion, training = done
    assert first["state"] == "success"
    assert first["tasks"] == {
        "choose_slot": "success", "warm_slot": "success", "shadow_check": "success", "ask_or_not": "success", "approve": "skipped",
        "flip": "success", "bake": "success", "settle": "success",
    }  # fmt: skip
    assert (again["state"], again["tasks"]["choose_slot"], again["tasks"]["settle"]) == ("success", "skipped", "success")
    assert (back["state"], back["tasks"]) == ("success", {"roll_back": "success"})
    assert (missing["state"], missing["tasks"]["choose_slot"], missing["tasks"]["settle"]) == ("failed", "failed", "success")
    assert missing["note"].startswith("choose_slot failed: product-index has no version '99'"), missing
    assert (hour["state"], hour["tasks"]["drain_changes"]) == ("success", "skipped"), "no change can be used"
    assert hour["note"].startswith("1 of 1 change became a dead letter: not JSON"), hour
    assert night["note"] is None, "nothing of its catalogue is in quarantine"
    assert (night["state"], night["tasks"]["publish_candidate"]) == ("success", "success"), night
    asked = [night["tasks"][task] for task in ("plan_reembedding", "ask_or_not", "approve_embedding", "agreed", "embed")]
    assert asked == ["success", "success", "skipped", "success", "success"], "it is quickly embedded: nobody is asked"
    assert watch["tasks"]["look"] == "success"
    assert garbage["state"] == "success"
    assert champion["tasks"] == {"announce_moved_champion": "success"}, "it was crowned by hand"
    assert training["state"] == "success", training
    aliases = registry.aliases(INDEX_MODEL)
    assert (aliases["live"], aliases["previous"]) == (one, two)
    assert aliases["candidate"] not in (one, two)
    assert serving == [one, one]
    assert Searcher.open(registry.index_manifest(aliases["candidate"]), registry.file).features.palette.any(axis=1).all()
