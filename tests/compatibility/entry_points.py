"""The public entry points that the compatibility tests use, in one place: a renamed step or setting is followed here alone.

A fixture is a home that an older commit made (make_fixture.py). Wherever its files named the folder it was made in they name ROOT,
and `unpack` writes the folder that it is unpacked to in its place. Everything else is asked through HTTP, through the command line,
and through the functions that the DAGs call.
"""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.catalog.changes.event import Event, delete, upsert
from tasks.catalog.changes.source import open_changes
from tasks.cli import app
from tasks.pipelines import drain_changes, refresh_index
from tasks.registry import INDEX_MODEL, Registry
from tasks.settings import PROJECT
from tests.catalogs import picture
from tests.running import Served, answers, until
from tests.servers import free_port

ROOT = "@fixture@"
TOKEN = "token-for-a-test"
START_S = 180.0


def relocate(folder: Path, before: str, after: str) -> None:
    """Writes `after` for the path `before` into every JSON file below a folder."""
    for path in folder.rglob("*.json"):
        text = path.read_text()
        if before in text:
            path.write_text(text.replace(before, after))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a fixture and makes its files name the folder they are in."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    relocate(folder, ROOT, str(folder))
    return folder


@contextmanager
def replica(folder: Path, **settings: str) -> Iterator[str]:
    """The address of a replica in a process of its own that is ready; `settings` without their prefix, its log in `folder`."""
    port = free_port()
    environment = {"VITRINE_PORT": str(port), "VITRINE_CACHE": str(folder / "cache")}
    environment |= {"VITRINE_POLL_S": "0.2", "VITRINE_DEADLINE_S": "60"}
    environment |= {f"VITRINE_{name.upper()}": value for name, value in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "serving.main"], env=_environment(environment), stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _until_ready(url, process, folder / "log")
            yield url
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def replica_here(release: Path) -> Iterator[str]:
    """The same of an exported release, in this process: without the seconds that another one takes to start."""
    with Served(create_app(ServingSettings(release=str(release), deadline_s=60))) as served:
        until(lambda: answers(f"{served.url}/readyz"), "the replica is ready", START_S)
        yield served.url


def search(url: str, query: dict[str, Any], home: Path) -> list[tuple[str, float]]:
    """Product ids and scores, best first, of a query: {"json": a request} or {"photo": a file below the catalogue}."""
    asked = f"{url}/v1/search"
    if "photo" in query:
        photo = (home / "shop" / query["photo"]).read_bytes()
        answer = httpx.post(asked, files={"image": photo}, data={"k": "10"}, timeout=60, trust_env=False)
    else:
        answer = httpx.post(asked, json=query["json"], timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return [(r["product_id"], r["score"]) for r in answer.json()["results"]]


class Live:
    """A home with its MLflow server and the replicas that follow it. `use` puts its settings into this process's environment."""

    def __init__(self, home: Path, mlflow_uri: str, urls: str = "") -> None:
        self.home = home
        self.environment = {
            "VITRINE_HOME": str(home), "VITRINE_CATALOG": str(home / "shop"), "VITRINE_MLFLOW_URI": mlflow_uri,
            "VITRINE_SERVING_URLS": urls, "VITRINE_ADMIN_TOKEN": TOKEN, "VITRINE_CHANGES": "outbox:", "VITRINE_P99_MS": "60000",
            "VITRINE_RECALL_TARGET": "0.2", "VITRINE_BAKE_S": "0",
        }  # fmt: skip
        self.registry = Registry(mlflow_uri, home / "cache")

    def aliases(self) -> dict[str, str]:
        return self.registry.aliases(INDEX_MODEL)

    def name_candidate(self, version: str) -> None:
        """The alias that `rebuild_index` moves when it published a version: the next refresh builds on it, or on what is live."""
        self.registry.set_alias(INDEX_MODEL, "candidate", version)

    def command(self, *words: str) -> str:
        """What `vitrine <words>` prints, in this process. Fails where it does. Needs its environment in use."""
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{done.output}{done.exception!r}"
        return done.output

    def send(self, *events: Event) -> None:
        with open_changes("outbox:", self.environment["VITRINE_CATALOG"], self.home) as source:
            source.send(events)

    def upsert(self, number: int, seed: int | None = None, **columns: object) -> Event:
        """Product `number` as of now, with the picture of `seed` where one is given, otherwise with its own."""
        name = f"images/{number}.png" if seed is None else f"images/new-{seed}.png"
        if not (self.home / "shop" / name).exists():
            picture(self.home / "shop" / name, number if seed is None else seed)
        row = {"title": f"changed {number}", "image": name, "price": 5.0, "currency": "EUR"}
        return upsert(product_id(number), datetime.now(UTC), row | columns)

    def delete(self, number: int) -> Event:
        return delete(product_id(number), datetime.now(UTC))

    def refresh(self, run_key: str) -> dict[str, Any]:
        """The steps of refresh_index, in their order; gives the record of the version. Needs its environment in use."""
        plan = drain_changes.drain(run_key)
        assert plan.due, plan.summary
        embedded = refresh_index.embed(plan)
        registered = refresh_index.register(plan, embedded)
        refresh_index.acknowledge(plan, registered, embedded)
        assert refresh_index.publish(registered)
        return registered.to_json()


def product_id(number: int) -> str:
    return f"p{number:04d}"


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment with these settings alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VITRINE_")}
    return kept | {"PYTHONPATH": str(PROJECT), "COLUMNS": "200"} | settings


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the replica is not ready after {START_S:g} s; its log: {log.read_text()[-2000:]}")


def read_queries(folder: Path) -> dict[str, Any]:
    """What was asked when the fixture was made, and what each version answered: {"queries": […], "answers": {version: […]}}."""
    return json.loads((folder / "expected.json").read_text())
