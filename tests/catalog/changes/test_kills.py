"""SIGKILL anywhere in a refresh: run again it makes the same files, and nothing is lost or done twice."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.embed.store import EmbeddingStore
from tasks.registry import INDEX_MODEL
from tasks.settings import PROJECT
from tests.catalog.changes.refreshed import LiveShop, empty_mlflow, own_mlflow
from tests.catalog.changes.test_sources import use_aws
from tests.servers import aws_server, kafka_broker

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PLACES = {
    "the plan was written and nothing else": ("before", "tasks.pipelines.refresh_index:embed", 1),
    "the pictures are embedded and their shards are not": ("after", "tasks.embed.worker:embed_chunk", 1),
    "embedded and not registered": ("before", "tasks.pipelines.refresh_index:register", 1),
    "half of the files are uploaded": ("after", "tasks.registry:Run.artifact", 3),
    "registered, and nobody was told": ("after", "tasks.registry:Registry.register", 1),
    "registered and not acknowledged": ("before", "tasks.catalog.changes.outbox:Outbox.acknowledge", 1),
    "acknowledged and not published": ("after", "tasks.catalog.changes.outbox:Outbox.acknowledge", 1),
}

USUAL = (
    "the pictures are embedded and their shards are not",
    "half of the files are uploaded",
    "registered and not acknowledged",
)
"""Tried each time; `make chaos` tries all."""


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveShop, LiveShop]]:
    """Two equal shops: one whose refreshes are killed, and one that is left in peace."""
    empty = empty_mlflow(tmp_path_factory.mktemp("empty") / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        homes = [tmp_path_factory.mktemp(name) for name in ("killed", "calm")]
        yield tuple(LiveShop(home, own_mlflow(home, empty), monkeypatch) for home in homes)  # type: ignore[misc]


def kill(live: LiveShop, run_key: str, when: str, place: str, which: int) -> None:
    """Runs the refresh in a process that ends by SIGKILL at the place."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.catalog.changes.killed", run_key, when, place, str(which)]
    done = subprocess.run(
        command, env=os.environ | live.environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize("name", PLACES if os.environ.get("CHAOS") else USUAL)
def test_a_killed_refresh_run_again_makes_the_same_files_once(shops: tuple[LiveShop, LiveShop], name: str) -> None:
    killed, calm = shops
    number = list(PLACES).index(name)
    for live in shops:
        live.use()
        new = live.upsert(100 + number, 1, seed=300 + number)
        live.send(live.upsert(number, number + 1), new, live.delete(99 + number, 2))
    undisturbed = calm.refresh(f"run-{number}")
    before = len(killed.registry.versions(INDEX_MODEL))
    kill(killed, f"run-{number}", *PLACES[name])
    killed.send(killed.upsert(20, number))  # what comes meanwhile is not part of that run
    made = killed.refresh(f"run-{number}")
    assert killed.own_files(made.version) == calm.own_files(undisturbed.version)
    assert len(killed.registry.versions(INDEX_MODEL)) == before + 1, "registered once"
    assert killed.count_waiting() == 1, "only what came meanwhile"
    assert killed.registry.aliases(INDEX_MODEL)["candidate"] == made.version
    (folder,) = (killed.home / "data" / "embeddings" / "tiny").iterdir()
    images = EmbeddingStore(str(folder), 16).checksums().to_pylist()
    assert len(images) == len(set(images)), "no picture is embedded twice"
    for live in shops:  # the next place starts from equal shops
        if live is calm:
            live.send(live.upsert(20, number))
        live.refresh(f"rest-{number}")


@pytest.mark.parametrize(
    "name", ["embedded and not registered", "registered, and nobody was told", "acknowledged and not published"]
)
def test_another_run_takes_over_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, empty_mlflow(tmp_path / "empty.db")), monkeypatch)
    live.send(live.upsert(3, 1), live.delete(4, 1))
    kill(live, "killed", *PLACES[name])
    live.send(live.upsert(5, 1))
    found = live.found(live.refresh("another").version)
    assert found["p003"]["title"] == "product 3 at 1"
    assert found["p005"]["title"] == "product 5 at 1"
    assert "p004" not in found
    assert len(found) == 59
    assert live.count_waiting() == 0


@pytest.mark.parametrize("kind", ["sqs", "kafka"])
def test_a_consumer_killed_before_it_acknowledges_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with aws_server() if kind == "sqs" else kafka_broker() as address:
        name = f"changes-{uuid.uuid4().hex[:8]}"
        if kind == "sqs":
            use_aws(monkeypatch, address)
        live = LiveShop(tmp_path, own_mlflow(tmp_path, empty_mlflow(tmp_path / "empty.db")), monkeypatch)
        live.environment["VITRINE_CHANGES"] = f"sqs://{name}" if kind == "sqs" else f"kafka://{address}/{name}"
        live.send(*(live.upsert(n, 1) for n in range(12)), live.delete(20, 1))
        kill(live, "killed", "after", "tasks.registry:Registry.register", 1)
        assert live.count_waiting() == 13
        made = live.refresh("killed", wait_s=2)
        assert live.count_waiting() == 0
        found = live.found(made.version)
        assert "p020" not in found
        assert all(found[f"p{n:03d}"]["title"] == f"product {n} at 1" for n in range(12))
        live.send(*(live.upsert(n, 1) for n in range(12)))  # delivered again, as such queues may do
        assert live.refresh("again", wait_s=2).changes == 0
        assert live.count_waiting() == 0
