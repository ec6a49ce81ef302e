"""Whatever one message holds, it becomes a dead letter with a sentence, and the good ones behind it are taken."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.catalog.changes import ledger
from tasks.catalog.changes.drain import NO_LIMITS, DrainResult, ParentState, UpsertSource, drain
from tasks.catalog.changes.event import MalformedEvent, read_event, upsert
from tasks.catalog.changes.sending import events_of_file
from tasks.catalog.changes.source import ChangeSource, Message, open_changes, storable
from tasks.catalog.schema import RowLimits, read_products
from tasks.catalog.snapshot import take_snapshot, write_snapshot
from tasks.catalog.sources.settings import source_options
from tasks.errors import CatalogError
from tasks.settings import Settings
from tests.catalog.changes.test_sources import NOW, Open, opened, servers  # noqa: F401

COLUMNS = pa.schema(
    [("size", pa.int64()), ("colours", pa.list_(pa.string())), ("since", pa.timestamp("us", "UTC")), ("note", pa.string())]
)
LATER = datetime(2026, 12, 1, tzinfo=UTC)


def event(product_id: object, **product: object) -> str:
    row = {"title": "T", "image": "a.jpg"} | product
    return json.dumps({"kind": "upsert", "product_id": product_id, "updated_at": "2026-11-01T00:00:00Z", "product": row})


BAD = {
    "half an emoji": event("p1", title="Mug \ud83d"),
    "half an emoji in the id": event("\ud83d"),
    "half an emoji in an own column": event("p1", note="\udfff"),
    "a price of 401 digits": event("p1")[:-2] + ', "price": 1' + "0" * 400 + "}}",
    "a number of 5000 digits": event("p1")[:-2] + ', "price": 1' + "0" * 5000 + "}}",
    "an own number of 100 digits": event("p1", size=10**100),
    "not a number": event("p1")[:-2] + ', "price": Infinity}}',
    "nested too deeply": event("p1")[:-2] + ', "note": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "not JSON": "nonsense",
    "nothing": "",
    "a list": "[]",
    "no id": event(None),
    "an id of 2000 characters": event("x" * 2000),
    "an id with a NUL": event("a\0b"),
    "no time": json.dumps({"kind": "delete", "product_id": "p"}),
    "a time of 14 digits": json.dumps({"kind": "delete", "product_id": "p", "updated_at": "99999-01-01"}),
    "a time far ahead": json.dumps({"kind": "delete", "product_id": "p", "updated_at": "2999-01-01"}),
    "a time that is a list": json.dumps({"kind": "delete", "product_id": "p", "updated_at": []}),
    "bytes that are not UTF-8": b'{"kind": "upsert", "title": "M\xfcller"}'.decode(errors="surrogateescape"),
    "a negative price": event("p1", price=-1),
    "an object as a title": event("p1", title={"en": "x"}),
    "a title without an end": event("p1", title="x" * 100_000),
}  # fmt: skip


class Queue:
    """A queue in memory; `drain` uses these three of its methods."""

    ahead = 1

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.dead = texts, list[str]()

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        return [Message(text, str(n)) for n, text in enumerate(self.texts)]

    def dead_letter(self, messages: list[tuple[Message, str]]) -> None:
        self.dead += [reason for _, reason in messages]

    def release(self, handles: list[str]) -> None: ...


def drained(source: Any) -> DrainResult:
    base = pa.table({"key": pa.array([], pa.int64()), "updated_at": pa.array([], pa.timestamp("us", "UTC"))})
    state = ParentState(ledger.SCHEMA.empty_table(), base, COLUMNS)
    return drain(source, state, ledger.SCHEMA.empty_table(), 100, 2.0, LATER)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_message_is_a_dead_letter_and_the_next_one_is_taken(text: str) -> None:
    queue = Queue([text, event("good")])
    assert drained(queue).rows["product_id"].to_pylist() == ["good"]
    (reason,) = queue.dead
    reason.encode()
    assert len(reason) < 400


def test_every_queue_takes_every_bad_message_as_a_dead_letter(opened: Open, request: pytest.FixtureRequest) -> None:  # noqa: F811
    with opened() as source:
        sent = send_raw(source, [*BAD.values(), event("good")])
        result = drained(source)
        assert result.rows["product_id"].to_pylist() == ["good"]
        source.acknowledge(result.handles)
        letters = source.dead_letters(100)
        assert len(letters) == sent - 1
        assert all(letter.reason for letter in letters)
        assert source.count_waiting() == 0


def send_raw(source: ChangeSource, texts: list[str]) -> int:
    """Puts texts into a queue as a program of the shop's might, past our own checks; those that the queue itself refuses stay out."""
    count = 0
    for text in texts:
        if hasattr(source, "database"):
            source.make_tables()  # type: ignore[attr-defined]
            data = text.encode(errors="surrogateescape")
            if hasattr(source.database, "path"):
                source.database.connection.execute("INSERT INTO outbox (event) VALUES (CAST(? AS TEXT))", [data])
            else:
                with source.database.transaction():
                    source.database.execute("INSERT INTO outbox (event, priority) VALUES ({}, {})", [(storable(text), False)])
        elif hasattr(source, "topic"):
            source._produce(source.topic, [("k", text, {"reason": "an old one"})])  # type: ignore[attr-defined]
        elif not text or len(text) > 200_000:
            continue
        else:
            source._send(source.url, [{"MessageBody": storable(text)}])  # type: ignore[attr-defined]
        count += 1
    return count


def test_headers_of_any_bytes_do_not_stop_kafka(servers: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": servers["kafka"]})
    with open_changes(f"kafka://{servers['kafka']}/headers", "", tmp_path) as source:
        producer.produce(
            "headers", event("good").encode(), headers=[("trace", b"\xff\xfe"), ("reason", None), ("reason", b"\xff")]
        )
        producer.flush(10)
        assert drained(source).rows["product_id"].to_pylist() == ["good"]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_sentence(data: bytes) -> None:
    try:
        read_event(data.decode(errors="surrogateescape"), LATER)
    except MalformedEvent as error:
        str(error)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.text(st.characters(categories=["Cs"]), max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["title", "image", "price", "category", "in_stock", "popularity", "brand", "size", "colours", "since", "note", "key", "other"]
)


@settings(deadline=None, max_examples=300)
@given(VALUES, VALUES, st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_product_is_taken_whole_or_refused(product_id: Any, at: Any, product: dict[str, Any]) -> None:
    text = json.dumps({"kind": "upsert", "product_id": product_id, "updated_at": at, "product": product})
    good = event("good", size="7", colours=["red", None], since="2026-11-25", note=5)
    queue = Queue([text, json.dumps({"kind": "upsert", "product_id": "x", "updated_at": "2026-11-02", "product": product}), good])
    result = drained(queue)
    taken = result.rows["product_id"].to_pylist()
    assert "good" in taken
    assert len(queue.dead) + len(taken) == 3 or product_id in ("x", "good")
    for batch in UpsertSource("changes", "", result.rows, COLUMNS).products():
        found = read_products(batch, "changes")
        assert not found.unusable, "what was taken can be built"
        assert pa.Table.from_batches([batch]).num_rows == len(taken)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_an_event_that_was_accepted_is_read_again_as_it_was(product: dict[str, Any]) -> None:
    try:
        first = upsert("p", NOW, {"title": "T", "image": "a.jpg"} | product)
        again = read_event(first.text, LATER)
    except (MalformedEvent, UnicodeEncodeError):
        return
    assert again.digest == read_event(again.text, LATER).digest


def test_a_year_one_event_is_read_again() -> None:
    text = json.dumps({"kind": "delete", "product_id": "p", "updated_at": "0001-01-01T00:00:00"})
    first = read_event(text, LATER)
    assert read_event(first.text, LATER) == first


def test_an_outbox_row_of_any_storage_class_is_received(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with open_changes(f"outbox:sqlite:///{path}", "", tmp_path) as source:
        source.send([upsert("good", NOW, {"title": "T", "image": "a.jpg"})])
        with closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("INSERT INTO outbox (event) VALUES (42), (x'00ff'), (CAST(x'4dfc' AS TEXT))")
        result = drained(source)
        assert result.rows["product_id"].to_pylist() == ["good"]
        assert result.malformed == 3
        assert len(source.dead_letters(10)) == 3


def test_limits_moved_by_settings_hold_for_snapshots_and_changes_alike(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("product_id,title,image,price\ndear,T,a.jpg,5e7\n")
    high = source_options(Settings(max_price=1e9))
    assert take_snapshot(str(tmp_path), str(tmp_path / "s"), "high", high).rows == 1
    (sent,) = events_of_file(tmp_path / "products.csv", NOW, high)
    queue = Queue([sent.text])
    base = pa.table({"key": pa.array([], pa.int64()), "updated_at": pa.array([], pa.timestamp("us", "UTC"))})
    state = ParentState(ledger.SCHEMA.empty_table(), base, COLUMNS)
    taken = drain(queue, state, ledger.SCHEMA.empty_table(), 10, 0, LATER, high.limits)  # type: ignore[arg-type]
    assert (taken.rows["product_id"].to_pylist(), queue.dead) == (["dear"], [])
    uri = str(tmp_path / "s" / "changes")
    copied = write_snapshot(
        UpsertSource("changes", "", taken.rows, COLUMNS), "changes", uri, "changes", LATER.isoformat(), NO_LIMITS
    )
    assert (copied.rows, copied.quarantined_rows) == (1, 0), "what was taken is built, whatever the limits are by then"
    with pytest.raises(CatalogError, match="VITRINE_MAX_PRICE"):
        events_of_file(tmp_path / "products.csv", NOW)


def test_a_product_of_whom_the_table_of_pictures_has_none_is_no_product_where_each_needs_one() -> None:
    """As in a snapshot, which sets its row aside; what does not speak of that table is a mistake, and a dead letter."""
    bare = event("p1", image=None, product_images=[])
    assert read_event(bare, LATER).kind == "delete"
    assert read_event(bare, LATER, RowLimits(text_only=True)).product == {"title": "T", "image_uri": ""}
    for product in ({}, {"product_images": None}, {"product_images": [], "title": ""}):
        with pytest.raises(MalformedEvent):
            read_event(event("p1", **{"image": None} | product), LATER)
