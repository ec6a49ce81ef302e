"""The three sources of changes against real servers: nothing leaves a queue before it is acknowledged, and then for good."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.catalog.changes.event import Event, delete, read_event, upsert
from tasks.catalog.changes.source import ChangeSource, lies_below_home, open_changes
from tasks.errors import CatalogError, SettingsError
from tasks.pipelines.drain_changes import change_source
from tasks.settings import Settings
from tests.servers import aws_server, free_port, kafka_broker, postgres_server

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 25, tzinfo=UTC)
KINDS = ("outbox in SQLite", "outbox in PostgreSQL", "SQS", "Kafka")

Open = Callable[[], AbstractContextManager[ChangeSource]]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    with aws_server() as aws, kafka_broker() as kafka, postgres_server() as database:
        yield {"aws": aws, "kafka": kafka, "postgres": database}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker of a busy machine may be silent for longer than one that has no more to give."""
    monkeypatch.setattr("tasks.catalog.changes.kafka.SETTLE_S", 60.0)


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens one and the same new queue, as often as it is called."""
    name = f"changes-{uuid.uuid4().hex[:8]}"
    use_aws(monkeypatch, servers["aws"])
    if request.param == "outbox in PostgreSQL":
        clear_postgres(servers["postgres"])
    uri = {
        "outbox in SQLite": f"outbox:sqlite:///{tmp_path / 'shop.db'}",
        "outbox in PostgreSQL": f"outbox:{servers['postgres']}",
        "SQS": f"sqs://{name}",
        "Kafka": f"kafka://{servers['kafka']}/{name}",
    }[request.param]
    return lambda: open_changes(uri, "", tmp_path)


def use_aws(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for key, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)


def clear_postgres(uri: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS outbox")
        cursor.execute("DROP TABLE IF EXISTS outbox_dead")
        connection.commit()


def events(count: int) -> list[Event]:
    return [upsert(f"p{n}", NOW, {"title": f"Größe {n}", "image": f"{n}.jpg"}) for n in range(count)]


def ids(source: ChangeSource, limit: int = 100, wait_s: float = 0) -> list[str]:
    return sorted(read_event(m.text, NOW).product_id for m in source.receive(limit, wait_s))


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(opened: Open) -> None:
    with opened() as source:
        source.send([*events(24), delete("gone", NOW)])
        assert source.count_waiting() == 25
        received = source.receive(100, 2)
        assert sorted(m.text for m in received) == sorted(e.text for e in [*events(24), delete("gone", NOW)])
        source.acknowledge([m.handle for m in received[:10]])
        source.release([m.handle for m in received[10:]])
    with opened() as source:
        assert source.count_waiting() == 15
        again = source.receive(100, 2)
        assert sorted(m.text for m in again) == sorted(m.text for m in received[10:])
        source.acknowledge([m.handle for m in received[:10]])  # acknowledging twice changes nothing
        source.acknowledge([m.handle for m in again])
        assert source.count_waiting() == 0
        assert source.receive(10, 0) == []


def test_another_process_acknowledges_by_the_handle_alone(opened: Open) -> None:
    with opened() as source:
        source.send(events(3))
        handles = [m.handle for m in source.receive(10, 2)]
        source.extend(handles, 60)
    with opened() as source:
        source.acknowledge(handles)
        assert source.count_waiting() == 0


def test_no_more_is_received_than_asked_for(opened: Open) -> None:
    with opened() as source:
        source.send(events(30))
        assert len(source.receive(12, 2)) == 12


def test_malformed_messages_are_kept_with_their_reason_and_can_be_sent_again(opened: Open) -> None:
    with opened() as source:
        source.send(events(3))
        first, *others = source.receive(10, 2)
        source.dead_letter([(first, "the price is not a number")])
        source.acknowledge([m.handle for m in [first, *others]])
        assert source.count_waiting() == 0
        (letter,) = source.dead_letters(10)
        assert (letter.text, letter.reason) == (first.text, "the price is not a number")
        assert source.dead_letters(10) == [letter], "looking does not take them away"
        assert source.requeue() == 1
        assert source.dead_letters(10) == []
        assert [m.text for m in source.receive(10, 2)] == [first.text]


def test_what_waits_since_when_and_the_newest_dead_letters_can_be_seen(opened: Open) -> None:
    from tasks.board.changes import read_queue

    began = datetime.now(UTC) - timedelta(seconds=1)
    with opened() as source:
        assert (source.count_waiting(), source.oldest_at(), source.count_dead_letters(), source.dead_letters(10)) == (
            0,
            None,
            0,
            [],
        )
        source.send([upsert(f"p{n}", datetime.now(UTC), {"title": "x", "image": "x.jpg"}) for n in range(5)])
        received = sorted(source.receive(10, 2), key=lambda m: m.text)
        for message in received[:3]:
            source.dead_letter([(message, f"no such colour in {read_event(message.text, datetime.now(UTC)).product_id}")])
            time.sleep(0.01)
        source.acknowledge([m.handle for m in received[:3]])
        source.release([m.handle for m in received[3:]])
    found = read_queue(opened)
    assert found["problem"] == found["dead_note"] == ""
    assert (found["name"], found["dead"], found["requeue"]) == (source.name, 3, "vitrine changes requeue")
    if "SQS" in found["name"]:
        assert "ApproximateAgeOfOldestMessage" in found["oldest_note"]
    else:
        assert began <= datetime.fromisoformat(found["oldest"]) + timedelta(seconds=1) <= datetime.now(UTC) + timedelta(seconds=1)
    assert [x["product_id"] for x in found["letters"]] == ["p2", "p1", "p0"], "the newest first"
    assert found["letters"][0]["reason"] == "no such colour in p2"
    assert len({x["id"] for x in found["letters"]}) == 3
    assert all(began <= datetime.fromisoformat(x["at"]) + timedelta(seconds=1) for x in found["letters"])
    assert read_queue(opened) == found, "looking changes nothing"
    with opened() as source:
        waiting = source.count_waiting()
        assert waiting >= 2
        assert source.requeue() == 3
        assert read_queue(opened)["dead"] == 0


def test_dead_letters_from_before_their_time_was_written_down_are_shown(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute(
            "CREATE TABLE outbox_dead (id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, reason TEXT NOT NULL)"
        )
        database.execute("INSERT INTO outbox_dead (event, reason) VALUES ('[]', 'old')")
    with open_changes(f"outbox:sqlite:///{tmp_path / 'shop.db'}", "", tmp_path) as source:
        assert [(x.reason, x.at, x.product_id) for x in source.dead_letters(10)] == [("old", None, "")]
        source.send(events(1))
        source.dead_letter([(source.receive(1, 0)[0], "new")])
        assert [(x.reason, x.at is None) for x in source.dead_letters(10)] == [("new", False), ("old", True)]


def test_waiting_for_the_first_message_ends_when_it_comes(opened: Open) -> None:
    import threading

    with opened() as source, opened() as sender:
        assert source.receive(10, 0) == []
        timer = threading.Timer(0.5, sender.send, [events(1)])
        timer.start()
        assert ids(source, wait_s=20) == ["p0"]
        timer.join()


def test_the_outbox_gives_priority_products_and_deletes_first(tmp_path: Path) -> None:
    with open_changes("outbox:", str(tmp_path / "a folder"), tmp_path) as source:
        marked = upsert("important", NOW, {"title": "x", "image": "x.jpg", "priority": 1})
        source.send([*events(5), marked, delete("gone", NOW)])
        assert ids(source, limit=2) == ["gone", "important"]


def test_sqs_itself_sends_a_message_that_nobody_manages_to_the_dead_letters(
    servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_aws(monkeypatch, servers["aws"])
    monkeypatch.setattr("tasks.catalog.changes.sqs.MOST_RECEIVED", 2)
    with open_changes("sqs://poison", "", tmp_path) as source:
        source.send(events(1))
        for _ in range(2):
            source.release([m.handle for m in source.receive(10, 0)])
        assert source.receive(10, 0) == []
        assert "never acknowledged" in source.dead_letters(10)[0].reason


def test_kafka_commits_no_further_than_the_first_message_that_is_left(servers: dict[str, str], tmp_path: Path) -> None:
    with open_changes(f"kafka://{servers['kafka']}/holes-{free_port()}", "", tmp_path) as source:
        for n in range(6):
            source.send([upsert("same", NOW, {"title": f"{n}", "image": "x.jpg"})])  # one key, one partition
        received = source.receive(10, 2)
        source.acknowledge([m.handle for m in received[:2] + received[3:]])
        assert source.count_waiting() == 4
        assert [m.text for m in source.receive(10, 2)] == [m.text for m in received[2:]]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("redis://x", "expected outbox:, sqs://queue, kafka"),
        ("kafka://host:1", "expected kafka://host:port/topic"),
        ("outbox:mysql://x", "not a database for an outbox"),
    ],
)
def test_a_source_that_is_none_is_one_clear_sentence(uri: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((SettingsError, CatalogError), match=says), open_changes(uri, "", tmp_path):
        pass


def test_a_broker_that_is_away_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.catalog.changes.kafka.TIMEOUT_S", 1.0)
    with (
        pytest.raises(CatalogError, match="Kafka does not answer"),
        open_changes(f"kafka://127.0.0.1:{free_port()}/t", "", tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "catalog", "below"),
    [
        ("outbox:", "postgresql://db/shop?image_root=s3://pictures", False),
        ("outbox:", "delta:s3://lake/products", True),
        ("outbox:postgresql://db/queue", "delta:s3://lake/products", False),
        ("compare:", "postgresql://db/shop", True),
        ("compare:postgresql://db/queue", "postgresql://db/shop", False),
        ("updated_at:", "postgresql://db/shop", True),
        ("sqs://queue", "delta:s3://lake/products", False),
    ],
)
def test_a_queue_below_home_is_refused_where_workers_share_a_store(
    changes: str, catalog: str, below: bool, tmp_path: Path
) -> None:
    assert lies_below_home(changes, catalog) is below
    if below:
        shared = replace(Settings(), home=tmp_path, store="s3://shop/store", changes=changes, catalog=catalog)
        with pytest.raises(SettingsError, match=r"VITRINE_CHANGES=.* name a database that all reach"), change_source(shared):
            pass
