"""SIGKILL anywhere in a refresh: run again it makes the same files, and nothing is lost or done twice."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tasks.embed.store import EmbeddingStore
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.killed import SETTLE_S, refresh_and_die, server
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
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
"""Tried each time; `make kill-drill` tries all."""


@pytest.fixture(scope="module")
def shops(mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveShop, LiveShop]]:
    """Two equal shops: one whose refreshes are killed, and one that is left in peace."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        homes = [tmp_path_factory.mktemp(name) for name in ("killed", "calm")]
        yield tuple(LiveShop(home, own_mlflow(home, mlflow_tables), monkeypatch) for home in homes)  # type: ignore[misc]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return server()


@pytest.fixture
def kill(processes: ForkServerContext) -> Callable[..., None]:
    """Runs the refresh of a shop in a process that ends by SIGKILL at a place."""

    def killing(live: LiveShop, run_key: str, *place: str | int) -> None:
        process = processes.Process(target=refresh_and_die, args=(dict(os.environ) | live.environment, run_key, *place))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL

    return killing


@pytest.mark.parametrize("name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.kill_drill) for n in PLACES])
def test_a_killed_refresh_run_again_makes_the_same_files_once(
    shops: tuple[LiveShop, LiveShop], kill: Callable[..., None], name: str
) -> None:
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
def test_another_run_takes_over_what_a_killed_one_left(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Callable[..., None], name: str
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
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
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Callable[..., None], kind: str
) -> None:
    with aws_server() if kind == "sqs" else kafka_broker() as address:
        name = f"changes-{uuid.uuid4().hex[:8]}"
        if kind == "sqs":
            use_aws(monkeypatch, address)
        monkeypatch.setattr("tasks.catalog.changes.kafka.SETTLE_S", SETTLE_S)
        live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
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
