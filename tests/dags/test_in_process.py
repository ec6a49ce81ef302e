"""Every DAG run in one process on a tiny shop: a real MLflow, real replicas, Airflow without its servers.

Its settings hold a password each, which is then searched for in everything that the runs left.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from serving.index.searcher import Searcher
from tasks.catalog.changes.event import upsert
from tasks.catalog.changes.source import open_changes
from tasks.catalog.load import load_folder
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Registry
from tasks.settings import Settings
from tests.airflow_server import airflow, environment
from tests.catalog.changes.refreshed import forget_versions
from tests.dags.canaries import CANARY, ChildWatch, files_with_canaries, found_in, with_canaries
from tests.registered import Shop, replicas
from tests.servers import free_port, postgres_server, redis_server

SHOWN = ("/v1/version", "/readyz", "/healthz", "/metrics", "/v1/search?product_id=p005&explain=true")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def from_connections(settings: Settings) -> dict[str, str]:
    """Some of the settings as connections of Airflow hold them, which the tasks read."""
    return {
        "VITRINE_CATALOG": "airflow://shop", "AIRFLOW_CONN_SHOP": settings.catalog,
        "VITRINE_REDIS_URL": "airflow://features", "AIRFLOW_CONN_FEATURES": settings.redis_url.removesuffix("/0"),
        "VITRINE_ADMIN_TOKEN": "airflow://token",
        "AIRFLOW_CONN_TOKEN": json.dumps({"conn_type": "generic", "password": settings.admin_token}),
    }  # fmt: skip


def test_every_dag_runs_to_its_end_and_tells_no_secret(
    mlflow_uri: str, airflow_tables: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registry = Registry(mlflow_uri, tmp_path / "cache")
    forget_versions(registry)
    shop = Shop(tmp_path, registry, products=24)
    one, two = shop.version(), shop.version()
    shop.point(blue=one, live=one, candidate=two)
    registry.set_alias(ENCODER_MODEL, "champion", shop.encoder())
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        load_folder(tmp_path / "shop", postgres)
        basis = replace(
            Settings(), home=tmp_path, mlflow_uri=mlflow_uri, airflow_url=f"http://127.0.0.1:{free_port()}", bake_s=0.5, p99_ms=60_000.0,
            encoder_preset="tiny", redis_url=stack.enter_context(redis_server(tmp_path, f"{CANARY}redis")),
        )  # fmt: skip
        settings = with_canaries(basis, f"{postgres}&image_root={tmp_path / 'shop'}")
        running = stack.enter_context(replicas(settings.mlflow_uri, tmp_path, 2, admin_token=settings.admin_token))
        settings = replace(settings, serving_urls=tuple(r.url for r in running))
        environ = environment(settings, airflow_tables) | from_connections(settings)
        runs = [
            ["promote_index", {}], ["promote_index", {}], ["rollback_index", {}], ["promote_index", {"version": "99"}],
            ["refresh_index", {}], ["rebuild_index", {}], ["watch_quality", {}], ["collect_garbage", {}],
            ["watch_champion", {}], ["train_encoder", {}],
        ]  # fmt: skip
        with open_changes(settings.changes, settings.catalog_uri, settings.home) as source:
            source.make_tables()  # type: ignore[attr-defined]
            row = {
                "title": "product 3, dearer",
                "brand": "brand 0",
                "category": "kind 1 > leaf 3",
                "price": 99.0,
                "image": "images/3.jpg",
            }
            source.send([upsert("p003", datetime.now(UTC), row)])
            with source.database.transaction():  # type: ignore[attr-defined]
                source.database.execute("INSERT INTO outbox (event) VALUES ('nonsense')")  # type: ignore[attr-defined]
        children = stack.enter_context(ChildWatch())
        told = airflow(environ, "tests.dags.in_process", json.dumps(runs), errors=tmp_path / "stderr.log")
        answers = [httpx.get(f"{r.url}{path}", timeout=60, trust_env=False).text for r in running for path in SHOWN]
        serving = [httpx.get(f"{r.url}/v1/version", timeout=60, trust_env=False).json()["live"]["version"] for r in running]
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
    skipped = {task for task, state in hour["tasks"].items() if state == "skipped"}
    assert (hour["state"], skipped) == ("success", {"publish_candidate", "ask_for_rebuild"}), (
        "the candidate is on a newer snapshot"
    )
    assert set(hour["tasks"].values()) == {"success", "skipped"}, hour
    assert hour["note"].startswith("1 of 2 changes became dead letters: not JSON"), hour
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

    assert not any(found_in(text) for text in answers), answers
    assert not found_in(told), [line for line in told.splitlines() if found_in(line)]
    assert "java" in children.seen, "Spark ran"
    assert children.held == set()
    # What Airflow itself logs in by is in its file of passwords, which only its own user reads.
    kept = {str(tmp_path / "airflow" / "passwords.json")}
    servers = [folder for folder in tmp_path_factory.getbasetemp().glob("mlflow*") if folder.is_dir()]
    assert servers
    assert set(files_with_canaries([tmp_path, *servers])) == kept
