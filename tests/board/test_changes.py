"""What the board says of changes that do not reach shoppers: over a real outbox and registry, and when something is away."""

import csv
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.contract.keys import product_key
from tasks import storage
from tasks.board import changes
from tasks.board.changes import ChangesBoard, SingleFlight
from tasks.board.quarantine import quarantine_lines
from tasks.catalog.changes.source import ChangeSource, open_changes
from tasks.embed.quarantine import SCHEMA, quarantine_uri
from tasks.errors import CatalogError, VitrineError
from tasks.pipelines.common import settings
from tasks.pipelines.drain_changes import change_source
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.servers import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def live(mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveShop:
    return LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)


def read(live: LiveShop) -> dict[str, Any]:
    """What a board that was opened just now says."""
    return ChangesBoard(lambda: change_source(settings()), lambda: live.registry, settings().store_uri, patience_s=60).read()


def test_with_nothing_wrong_it_says_so(live: LiveShop) -> None:
    found = read(live)
    queue, quarantine = found["queue"], found["quarantine"]
    assert (queue["waiting"], queue["oldest"], queue["dead"], queue["letters"]) == (0, "", 0, [])
    assert (quarantine["version"], quarantine["count"], quarantine["products"]) == (live.base, 0, [])


def test_changes_that_wait_dead_letters_and_quarantine_are_shown_with_their_reasons(live: LiveShop) -> None:
    (live.home / "shop" / "images" / "bad.jpg").write_bytes(b"no picture")
    with live.queue() as source:
        source.make_tables()  # type: ignore[attr-defined]
        source.database.execute('INSERT INTO outbox (event) VALUES (\'{"product_id": "p5"}\')')  # type: ignore[attr-defined]
    live.send(live.upsert(3, 1, image="images/bad.jpg"), live.upsert(4, 1))
    made = live.refresh("r1")
    live.send(live.upsert(5, 1), live.upsert(6, 1))
    found = read(live)
    queue, quarantine = found["queue"], found["quarantine"]
    assert queue["waiting"] == 2
    assert queue["oldest"]
    ((letter),) = queue["letters"]
    assert (letter["product_id"], letter["reason"]) == ("p5", "kind is None; expected upsert or delete")
    assert (quarantine["version"], quarantine["aliases"], quarantine["count"]) == (made.version, ("candidate",), 1)
    (product,) = quarantine["products"]
    assert (product["product_id"], product["image"], product["run"]) == ("p003", "images/bad.jpg", "r1")
    assert product["reason"]
    assert product["detail"]
    assert not product["detail"].startswith("images/bad.jpg: "), "the picture has a column of its own"
    board = ChangesBoard(lambda: change_source(settings()), lambda: live.registry, settings().store_uri)
    (listed,) = csv.DictReader(io.StringIO(board.quarantine_csv()))
    assert listed == {name: product[name] for name in ("product_id", "image", "reason", "detail", "run")}
    (listed,) = csv.DictReader(io.StringIO(board.dead_letters_csv()))
    assert (listed["id"], listed["product_id"], listed["text"]) == (letter["id"], "p5", '{"product_id": "p5"}')
    live.send(live.upsert(3, 2))
    live.refresh("r2")
    assert read(live)["quarantine"]["products"] == [], "a good picture brings it back"


def test_what_a_rebuild_quarantined_is_named_by_its_snapshot_until_it_changes(live: LiveShop) -> None:
    """Base versions of this shop quarantine nothing, so the list of one is written here, as old runs wrote it: without ids."""
    base = live.registry.version(INDEX_MODEL, live.base)
    manifest = live.registry.index_manifest(live.base)
    counted = manifest.model_copy(update={"counts": manifest.counts.model_copy(update={"quarantined": 2})})
    run = live.registry.run_key(base.run_id)
    rows = [
        {"key": product_key(i), "image_uri": f"{i}.jpg", "reason": "missing", "detail": f"{i}.jpg: gone", "run": run}
        for i in ("p001", "p002")
    ]
    with storage.writer(quarantine_uri(str(live.home / "data"), run)) as stream:
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([SCHEMA.field(name) for name in rows[0]])), stream)
    lines = quarantine_lines(live.registry, base, counted, [base], 20)
    assert sorted((x.product_id, x.image, x.reason, x.detail) for x in lines) == [
        ("p001", "p001.jpg", "missing", "gone"), ("p002", "p002.jpg", "missing", "gone"),
    ]  # fmt: skip
    assert len(quarantine_lines(live.registry, base, counted, [base], 1)) == 1
    live.send(live.upsert(1, 1))
    newer = live.registry.version(INDEX_MODEL, live.refresh("r1").version)
    changed = live.registry.manifest_of(newer)
    changed = changed.model_copy(update={"counts": changed.counts.model_copy(update={"quarantined": 1})})
    assert [x.product_id for x in quarantine_lines(live.registry, newer, changed, [newer, base], 20)] == ["p002"]


def test_before_the_first_version_the_last_run_says_what_it_quarantined(live: LiveShop) -> None:
    live.registry.client.delete_registered_model(INDEX_MODEL)
    snapshot = live.shop.snapshot("made-9")
    row = {"key": product_key("p007"), "image_uri": "7.jpg", "reason": "missing", "detail": "7.jpg: gone", "run": snapshot.id}
    with storage.writer(quarantine_uri(str(live.home / "data"), snapshot.id)) as stream:
        pq.write_table(pa.Table.from_pylist([row], pa.schema([SCHEMA.field(name) for name in row])), stream)
    found = read(live)["quarantine"]
    assert (found["version"], found["count"], found["products"][0]["product_id"]) == ("", 1, "p007")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("kafka://127.0.0.1:{port}/t", "the queue cannot be read: Kafka does not answer at 127.0.0.1"),
        ("outbox:postgresql://shop:hush@127.0.0.1:{port}/db", "the queue cannot be read: PostgreSQL does not answer"),
        ("outbox:mysql://shop:hush@host/db", "outbox: mysql://********@host/db: not a database"),
        ("redis://shop:hush@host", "VITRINE_CHANGES='redis://********@host'"),
    ],
)
def test_a_queue_that_cannot_be_read_is_one_sentence_without_secrets(
    live: LiveShop, uri: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.catalog.changes.kafka.TIMEOUT_S", 1.0)
    monkeypatch.setenv("VITRINE_CHANGES", uri.format(port=free_port()))
    found = read(live)
    assert says.removeprefix("outbox: ") in found["queue"]["problem"]
    assert "hush" not in str(found)
    assert found["quarantine"]["version"] == live.base, "the rest is shown"


def test_dead_letters_that_cannot_be_read_do_not_hide_what_waits(live: LiveShop) -> None:
    live.send(live.upsert(3, 1))
    with live.queue() as source:
        source.make_tables()  # type: ignore[attr-defined]
        source.database.execute("DROP TABLE outbox_dead")  # type: ignore[attr-defined]

        @contextmanager
        def opened() -> Iterator[ChangeSource]:
            yield source

        found = changes.read_queue(opened)
    assert (found["waiting"], found["dead"]) == (1, None)
    assert "the dead letters cannot be read: no such table: outbox_dead" in found["dead_note"]


def test_one_look_serves_everybody_and_a_slow_one_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FRESH_S", 60.0)
    looks, answers = [], threading.Event()

    def slow() -> dict[str, Any]:
        looks.append("look")
        with open_changes("outbox:", str(tmp_path / "folder"), tmp_path) as source:
            assert answers.wait(60)
            return {"waiting": source.count_waiting()}

    look = SingleFlight(slow, "the queue", 0.2)
    assert [look.start()(), look.start()()] == [{"problem": "the queue did not answer within 0.2 s"}] * 2
    look.patience_s = 60
    answers.set()
    assert look.start()() == {"waiting": 0}
    assert len(looks) == 1


def test_a_cell_that_a_spreadsheet_would_calculate_is_text() -> None:
    table = changes.as_csv(("id",), [{"id": "=1+1"}, {"id": 'a,"b"'}, {"id": "p1"}])
    assert list(csv.reader(io.StringIO(table))) == [["id"], ["'=1+1"], ['a,"b"'], ["p1"]]


def test_a_list_that_cannot_be_read_is_one_sentence(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_CHANGES", f"outbox:postgresql://shop:hush@127.0.0.1:{free_port()}/db")
    with pytest.raises(VitrineError, match="the dead letters cannot be read: PostgreSQL does not answer") as raised:
        ChangesBoard(lambda: change_source(settings()), lambda: live.registry, settings().store_uri).dead_letters_csv()
    assert "hush" not in str(raised.value)


def test_an_error_without_words_is_named_by_its_kind() -> None:
    assert changes.public_message(KeyError()) == "KeyError"
    assert changes.public_message(CatalogError("first\nsecond")) == "first"
