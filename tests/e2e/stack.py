"""MLflow, Airflow with its scheduler, two replicas and a small shop whose catalogue and change queue are kept in step."""

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from serving.index.searcher import Searcher
from tasks.catalog.changes.event import Event, delete, upsert
from tasks.catalog.changes.source import open_changes
from tasks.demo.airflow import Airflow
from tasks.demo.services import all_services, serving_service
from tasks.demo.supervisor import Service, Supervisor
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, Registry
from tasks.settings import Settings
from tests import running
from tests.catalogs import picture, read_table, small_catalog, write_table
from tests.servers import free_port
from tests.tiny import tiny_encoder

PRODUCTS = 60
until = partial(running.until, limit_s=900)
ENDED = ("success", "failed")
RELEASING = ("rebuild_index", "refresh_index", "promote_index")
BY_THEMSELVES = ("watch_champion", "watch_quality", "collect_garbage")
"""DAGs that would start others in the middle of a test."""


class Catalogue:
    """The shop's products.csv and photos.csv, and the events that tell of each change: both are written together."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        self.rows = {r["product_id"]: r | {"updated_at": now} for r in read_table(folder / "products.csv")}
        self.photos = read_table(folder / "photos.csv")
        self.write()

    @property
    def ids(self) -> set[str]:
        return set(self.rows)

    def change(self, upserts: dict[int, int], deletes: tuple[int, ...] = (), tell: bool = True) -> None:
        """Products by number get the picture of a seed; others go. With `tell` the queue learns of it."""
        now = datetime.now(UTC)
        events: list[Event] = []
        for number, seed in upserts.items():
            product_id, image = f"p{number:03d}", f"images/seed-{seed}.jpg"
            picture(self.folder / image, seed)
            row = {
                "title": f"product {number} at {now:%H:%M:%S}", "brand": f"brand {number % 3}", "category": f"kind {number % 2}",
                "price": 10.0 + seed, "currency": "EUR", "in_stock": 1, "image": image,
            }  # fmt: skip
            self.rows[product_id] = {"product_id": product_id, "updated_at": now.isoformat(timespec="microseconds")} | row
            events.append(upsert(product_id, now, row | {"in_stock": True}))
        for number in deletes:
            self.rows.pop(f"p{number:03d}", None)
            events.append(delete(f"p{number:03d}", now))
        self.write()
        if tell:
            with open_changes("outbox:", self.settings.catalog_uri, self.settings.home) as source:
                source.send(events)

    def write(self) -> None:
        write_table(self.folder / "products.csv", list(self.rows.values()))
        write_table(self.folder / "photos.csv", [p for p in self.photos if p["product_id"] in self.rows])


class Stack:
    """Everything runs; the champion is the tiny encoder."""

    def __init__(self, home: Path) -> None:
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(4)]
        self.settings = replace(
            Settings(), home=home, catalog=str(small_catalog(home / "shop", products=PRODUCTS)), mlflow_uri=urls[0],
            airflow_url=urls[1], serving_urls=(urls[2], urls[3]), airflow_password="admin-for-a-test", admin_token="token-for-a-test",
            bake_s=2.0, p99_ms=5000.0, ranker=str(home / "ranker.json"),
        )  # fmt: skip
        self.rank_by({"weights": {"popularity": 0.01}})
        self.catalogue = Catalogue(home / "shop", self.settings)
        self.supervisor = Supervisor(home)
        self.services: list[Service] = [*all_services(self.settings), self._second_replica()]
        self.registry = Registry(self.settings.mlflow_uri, home / "test-cache")
        self.airflow = Airflow(self.settings.airflow_url, self.settings.airflow_user, self.settings.airflow_password)
        self.airflow.client.timeout = httpx.Timeout(120)  # on a machine that is busy with other things, too

    def _second_replica(self) -> Service:
        settings = replace(self.settings, serving_urls=self.settings.serving_urls[1:])
        service = serving_service(settings)
        environment = service.environment | {"VITRINE_CACHE": str(settings.home / "serving" / "cache-2")}
        return replace(service, name="serving-2", environment=environment)

    def rank_by(self, ranker: dict[str, Any]) -> None:
        """Other weights and rules for the versions from now on."""
        Path(self.settings.ranker).write_text(json.dumps(ranker))

    def start(self) -> None:
        for service in self.services:
            self.supervisor.start(service)
        for service in self.services:
            self.supervisor.wait(service)
        wanted = {"rebuild_index", "promote_index", "rollback_index", "refresh_index", *BY_THEMSELVES}
        until(lambda: wanted <= self.airflow.dags(), "the DAGs are parsed")
        # Airflow makes up for a run that was due minutes before the start: it must not find a champion and announce it.
        until(lambda: self._ended(BY_THEMSELVES), "what Airflow started by itself ends")
        for dag in BY_THEMSELVES:
            self.airflow.call("PATCH", f"/dags/{dag}", json={"is_paused": True})
        self.crown(0)

    def stop(self) -> None:
        self.airflow.client.close()
        for service in self.services:
            self.supervisor.stop(service.name)

    def crown(self, seed: int, dim: int = 16, teacher: int | None = None) -> str:
        """Makes the tiny encoder of this seed the champion, as a person does in MLflow; gives its version."""
        folder = self.settings.home / f"tiny-{seed}-{dim}"
        tiny_encoder(folder, dim, seed=seed, teacher=teacher)
        with self.registry.run("encoders", f"tiny-{seed}-{dim}", "tiny") as run:
            run.artifacts(folder, ENCODER_PATH)
            version = self.registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, {}, "tiny").version
        self.registry.set_alias(ENCODER_MODEL, "champion", version)
        return version

    def run(self, dag: str, **conf: Any) -> tuple[str, str]:
        """Starts a DAG and waits for its end; its run id and state."""
        run_id = self.airflow.trigger(dag, conf)
        return run_id, self.finished(dag, run_id)

    def finished(self, dag: str, run_id: str) -> str:
        until(lambda: self.airflow.run(dag, run_id)["state"] in ENDED, f"{dag} {run_id} ends")
        return str(self.airflow.run(dag, run_id)["state"])

    def states(self, dag: str, run_id: str) -> dict[str, str]:
        return {t.task: t.state for t in self.airflow.tasks(dag, run_id)}

    def quiet(self) -> None:
        """Waits until no release DAG is under way: an hour whose deltas grew too large asks for a rebuild by itself."""
        until(lambda: self._ended(RELEASING), "the release DAGs end")

    def _ended(self, dags: tuple[str, ...]) -> bool:
        return all(r["state"] in ENDED for dag in dags for r in self.airflow.runs(dag))

    def aliases(self) -> dict[str, str]:
        return self.registry.aliases(INDEX_MODEL)

    def serving(self) -> list[str]:
        """The version that each replica serves; "" for none."""
        found = []
        for url in self.settings.serving_urls:
            state: dict[str, Any] = {}
            with contextlib.suppress(httpx.HTTPError):
                state = httpx.get(f"{url}/v1/version", timeout=5, trust_env=False).json()
            found.append(state["live"]["version"] if state.get("live") else "")
        return found

    def servable(self) -> set[str]:
        """Every product id that can be found in what is live."""
        searcher = Searcher.open(self.registry.index_manifest(self.aliases()["live"]), self.registry.file)
        rows = np.flatnonzero(searcher.live())
        return {r["product_id"] for r in searcher.features.take(rows, ["product_id"])}

    def goes_live(self, version: str) -> None:
        until(
            lambda: self.serving() == [version] * 2 and self.aliases()["live"] == version,
            f"version {version} is live on both replicas",
        )
        self.quiet()

    def night(self) -> str:
        """rebuild_index; gives the version that went live, which holds exactly the catalogue."""
        return self._made("rebuild_index")

    def hour(self) -> str:
        """The same by refresh_index."""
        return self._made("refresh_index")

    def _made(self, dag: str) -> str:
        """Airflow's own schedule may have made the version a moment earlier: then this run finds nothing to do, which is as good."""
        run_id, state = self.run(dag)
        assert state == "success", self.states(dag, run_id)
        version = self.aliases()["candidate"]
        self.goes_live(version)
        assert self.servable() == self.catalogue.ids
        return version
