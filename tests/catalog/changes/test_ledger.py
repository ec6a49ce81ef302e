"""Duplicates, reordering and replays: whatever happens on the way, the later change of each product is what an index shows."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serving.contract.manifest import IndexManifest
from serving.contract.segments import ROW_COLUMNS
from serving.index.searcher import Searcher
from tasks.catalog.changes import ledger
from tasks.catalog.changes.drain import NO_LIMITS, ParentState, UpsertSource, drain
from tasks.catalog.changes.event import Event, MalformedEvent, delete, read_event, upsert
from tasks.catalog.changes.source import Message
from tasks.catalog.schema import UPDATED_AT, RowLimits, read_products
from tasks.catalog.snapshot import product_table
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.delta_version import ArtifactLocation, EmbeddedRows, mark_membership, next_version
from tasks.index.template import train_template
from tasks.release.gates.reconcile import catalogue_now
from tests.index.shop import Shop, make_shop, manifest_of

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
D = 16
POOL = 12
"""Products that changes are about: P00000 to P00007 are in the base, the others are new."""
IN_BASE = 8


def at(minute: int) -> datetime:
    return NOW + timedelta(minutes=minute)


def event(number: int, minute: int, kind: str, variant: int) -> Event:
    """A change of product `number`; `variant` tells apart two of the same time. Minute 0 is what the base's snapshot has."""
    name = f"P{number:05d}"
    row = {"title": f"{name} at {minute}, {variant}", "image": f"{variant}.jpg", "price": float(abs(minute)), "colour": "blue"}
    return delete(name, at(minute)) if kind == "delete" else upsert(name, at(minute), row)


some_events = st.lists(
    st.builds(
        event, st.integers(0, POOL - 1), st.integers(-2, 4), st.sampled_from(["upsert", "upsert", "delete"]), st.integers(0, 1)
    ),
    min_size=1,
    max_size=20,
)


def oracle(events: list[Event]) -> dict[str, str]:
    """product id -> title of what the catalogue holds at the end: the last change of each product, or what the base has."""
    found = {f"P{n:05d}": f"Thing {n}" for n in range(IN_BASE)}
    last: dict[str, Event] = {}
    for one in events:
        if one.product_id not in last or one.order > last[one.product_id].order:
            last[one.product_id] = one
    for product_id, one in last.items():
        newer = one.updated_at > at(0) or (one.kind == "delete" and one.updated_at == at(0))
        if product_id in found and not newer:
            continue
        found.pop(product_id, None)
        if one.kind == "upsert":
            found[product_id] = one.product["title"]
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, IndexManifest, pa.Table, Path]:
    """A base of 8 products whose rows are of minute 0, with its snapshot's (key, updated_at)."""
    home = tmp_path_factory.mktemp("base")
    shop = make_shop(home / "shop", n=IN_BASE, d=D)
    template = train_template(shop.vectors_uri, IndexConfig(shards=2), home)
    built = [build_shard(shop.vectors_uri, shop.snapshot.uri, template, s, home / f"shard-{s}") for s in range(2)]
    products = product_table(shop.snapshot.uri, ["key"])
    products = products.append_column("updated_at", pa.array([at(0)] * len(products), UPDATED_AT))
    return shop, manifest_of(shop, built), products, home


class Maker:
    """Makes versions as the steps do, without an MLflow: `held` is the ledger of its newest version."""

    def __init__(self, base: tuple[Shop, IndexManifest, pa.Table, Path], folder: Path) -> None:
        self.shop, self.manifest, self.products, self.home = base
        self.folder = folder
        self.held = ledger.SCHEMA.empty_table()
        self.made = 0

    def locate(self, ref):  # type: ignore[no-untyped-def]
        mine = self.folder / ref.path
        return mine if mine.exists() else self.home / ref.path

    def version(self, events: list[Event], carried: pa.Table | None = None) -> None:
        tables = [carried if carried is not None else ledger.SCHEMA.empty_table(), ledger.entries(events, NOW)]
        changed = ledger.newer(ledger.latest_changes(tables), self.held, self.products)
        if not len(changed):
            return
        changed = mark_membership(changed, self.products, self.products["key"].combine_chunks())
        source = UpsertSource("a test", "", changed, pa.schema([("colour", pa.string())]))
        tables = [read_products(b, "a test").table for b in source.products()]
        rows = (
            pa.concat_tables(tables).select([*ROW_COLUMNS, "colour"]) if tables else pa.table({"key": pa.array([], pa.int64())})
        )
        vectors = np.zeros((len(rows), D), np.float32)
        vectors[np.arange(len(rows)), np.arange(len(rows)) % D] = 1
        self.made += 1
        path = f"made{self.made}"
        self.manifest, self.held = next_version(
            self.manifest,
            self.held,
            changed,
            EmbeddedRows(rows, vectors),
            ArtifactLocation(self.folder / path, "", path),
            self.locate,
        )

    def found(self) -> dict[str, str]:
        searcher = Searcher.open(self.manifest, self.locate)
        counts = self.manifest.counts
        assert searcher.live_rows == counts.servable == counts.catalogue - counts.quarantined, "reconciled exactly"
        wanted = set(catalogue_now(self.shop.snapshot, self.held)["product_id"].to_pylist())
        rows = searcher.features.take(np.flatnonzero(searcher.live()), ["product_id", "title"])
        assert len(rows) == len({r["product_id"] for r in rows}), "nothing twice"
        assert {r["product_id"] for r in rows} == wanted
        return {r["product_id"]: r["title"] for r in rows}


def batches(data: st.DataObject, events: list[Event]) -> list[list[Event]]:
    """The events in any order, some of them again, cut anywhere."""
    again = data.draw(st.lists(st.sampled_from(events), max_size=8), "replayed")
    order = data.draw(st.permutations([*events, *again]), "order")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4), "cuts"))
    edges = [0, *cuts, len(order)]
    return [list(order[a:b]) for a, b in itertools.pairwise(edges)]


@given(events=some_events, data=st.data())
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink], derandomize=True)
def test_any_order_any_repetition_any_batches_give_what_the_last_changes_say(
    base, events: list[Event], data: st.DataObject
) -> None:  # type: ignore[no-untyped-def]
    with TemporaryDirectory() as name:
        maker = Maker(base, Path(name))
        for batch in batches(data, events):
            maker.version(batch)
        assert maker.found() == oracle(events)


@given(events=some_events, data=st.data())
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink], derandomize=True)
def test_two_makers_at_once_lose_nothing_once_one_takes_over_the_others_ledger(
    base, events: list[Event], data: st.DataObject
) -> None:  # type: ignore[no-untyped-def]
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        first, second = Maker(base, Path(one)), Maker(base, Path(two))
        for batch in batches(data, events):
            data.draw(st.sampled_from([first, second]), "maker").version(batch)
        first.version([], carried=second.held)
        assert first.found() == oracle(events)
        second.version([], carried=first.held)
        assert second.found() == oracle(events)


def test_many_changes_of_the_same_few_products_stay_few(base) -> None:  # type: ignore[no-untyped-def]
    many = [event(n % 3, n % 5, "upsert", 0) for n in range(3000)]
    assert len(ledger.latest_changes([ledger.entries(many, NOW)])) == 3


def test_a_snapshot_taken_later_knows_better_but_recent_deletes_are_remembered(base) -> None:  # type: ignore[no-untyped-def]
    _, _, products, _ = base
    begun = at(60)
    old = ledger.entries(
        [event(1, 2, "upsert", 0), event(2, 2, "delete", 0), event(9, 2, "upsert", 0), event(10, 2, "delete", 0)], NOW
    )
    late = ledger.entries([event(3, 55, "upsert", 0), event(11, 55, "upsert", 0)], at(55))
    kept = ledger.carry_over(ledger.latest_changes([old, late]), products, begun, now=at(120))
    assert set(kept["product_id"].to_pylist()) == {"P00010", "P00003", "P00011"}
    memories = dict(zip(kept["product_id"].to_pylist(), ledger.delete_markers(kept, products, begun).to_pylist(), strict=True))
    assert memories == {"P00010": True, "P00003": False, "P00011": False}
    assert ledger.carry_over(old, products, begun, now=NOW + ledger.MEMORY + timedelta(hours=1)).num_rows == 0


class Fixed:
    """A queue that holds these messages; says what was done with them."""

    name, ahead = "fixed", 3

    def __init__(self, texts: list[str]) -> None:
        self.messages = [Message(t, str(n)) for n, t in enumerate(texts)]
        self.buried: list[tuple[str, str]] = []
        self.released: list[str] = []

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        return self.messages[:limit]

    def dead_letter(self, messages: list[tuple[Message, str]]) -> None:
        self.buried += [(m.handle, reason) for m, reason in messages]

    def release(self, handles: list[str]) -> None:
        self.released += handles


def held(base) -> ParentState:  # type: ignore[no-untyped-def]
    return ParentState(ledger.SCHEMA.empty_table(), base[2], pa.schema([("colour", pa.string()), ("weight", pa.float64())]))


def test_priority_goes_first_and_only_what_is_left_stays_unacknowledged(base) -> None:  # type: ignore[no-untyped-def]
    marked = upsert("P00005", at(1), {"title": "x", "image": "x.jpg", "priority": True})
    events = [event(0, 1, "upsert", 0), event(1, 1, "upsert", 0), event(0, 2, "upsert", 0), event(2, 1, "delete", 0), marked]
    queue = Fixed([e.text for e in events] + ["{}"])
    drained = drain(queue, held(base), ledger.SCHEMA.empty_table(), 3, 0, NOW)  # type: ignore[arg-type]
    assert set(drained.rows["product_id"].to_pylist()) == {"P00002", "P00005", "P00001"}
    assert queue.released == ["2"], "the newer one of product 0 waits; its older one has nothing to say any more"
    assert sorted(drained.handles) == ["0", "1", "3", "4", "5"]
    assert (drained.left, drained.malformed, drained.contained) == (1, 1, 1)
    assert (
        drained.note
        == "1 of 6 changes became dead letters: kind is None; expected upsert or delete; vitrine changes dead lists it"
    )
    assert queue.buried[0][0] == "5"


GOOD = {"title": "x", "image": "x.jpg"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object is expected"),
        ({"kind": "insert"}, "expected upsert or delete"),
        ({"kind": "delete", "product_id": [7]}, "product_id is [7]"),
        ({"kind": "delete", "product_id": "p"}, "updated_at is None"),
        ({"kind": "delete", "product_id": "p", "updated_at": "yesterday"}, "updated_at 'yesterday' is not a time"),
        ({"kind": "delete", "product_id": "p", "updated_at": "2036-01-01T00:00:00Z"}, "lies in the future"),
        ({"kind": "upsert", "product_id": "p", "updated_at": "2026-01-01T00:00:00Z"}, "there is none"),
        ({"product": {"title": "x"}}, "has no image"),
        ({"product": {"title": "", "image": "x.jpg"}}, "has no title"),
        ({"product": GOOD | {"price": "dear"}}, "price 'dear' is not a number"),
        ({"product": GOOD | {"in_stock": "maybe"}}, "in_stock 'maybe' is not one of true, false"),
        ({"product": GOOD | {"category": 3}}, "category 3 is a number"),
        ({"product": GOOD | {"brand": ["a"]}}, "brand ['a'] is a list"),
        ({"product": GOOD | {"weight": "heavy"}}, "column weight: 'heavy' is not a number; the index has double there"),
        (
            {"product": GOOD | {"colour": {"main": "red"}}},
            "column colour: {'main': 'red'} is an object; a text is expected; the index has string there",
        ),
    ],
)
def test_what_is_no_event_goes_to_the_dead_letters_with_the_reason(base, record, says: str) -> None:  # type: ignore[no-untyped-def]
    if isinstance(record, dict) and "kind" not in record:
        record = {"kind": "upsert", "product_id": "p", "updated_at": "2026-01-01T00:00:00Z"} | record
    queue = Fixed([record if isinstance(record, str) else json.dumps(record)])
    drained = drain(queue, held(base), ledger.SCHEMA.empty_table(), 10, 0, NOW)  # type: ignore[arg-type]
    assert len(drained.rows) == 0
    assert says in queue.buried[0][1]


def test_an_event_reads_as_it_was_written() -> None:
    one = upsert("Größe", at(3), {"title": "x", "image": "x.jpg", "category": "a > b", "in_stock": 0, "price": 3})
    again = read_event(one.text, NOW)
    assert again == one
    assert again.product == {"title": "x", "image_uri": "x.jpg", "category": ["a", "b"], "in_stock": False, "price": 3.0}
    zoned = read_event(json.dumps(json.loads(one.text) | {"updated_at": "2026-11-25T14:03:00+02:00"}), NOW)
    assert zoned == one
    with pytest.raises(MalformedEvent):
        read_event("nonsense", NOW)


@pytest.mark.parametrize(
    ("columns", "images"),
    [
        ({}, ["b.jpg"]),
        ({"images": pa.list_(pa.string())}, ["b.jpg"]),
        ({"images": pa.string()}, None),
        ({"images": pa.int64()}, None),
    ],
)
def test_further_pictures_wait_where_the_base_has_another_column_of_that_name(columns: dict, images: list[str] | None) -> None:
    changed = ledger.entries([upsert("p", at(3), {"title": "x", "image": "a.jpg", "images": ["b.jpg"]})], NOW)
    (batch,) = UpsertSource("a test", "", changed, pa.schema(list(columns.items()))).products()
    assert batch.to_pylist()[0].get("images") == images


def test_an_event_without_a_picture_is_one_only_where_words_find_products() -> None:
    limits = RowLimits(text_only=True)
    for product in ({"title": "x"}, {"title": "x", "image": None}, {"title": "x", "image": "", "images": []}):
        event = upsert("p", NOW, product, limits)
        assert event.product == {"title": "x", "image_uri": ""}
        assert read_event(event.text, NOW, NO_LIMITS) == event
        with pytest.raises(MalformedEvent, match="has no image"):
            upsert("p", NOW, product)
    with pytest.raises(MalformedEvent, match="has no title"):
        upsert("p", NOW, {"image": "a.jpg"}, limits)
    with pytest.raises(MalformedEvent, match="every address is longer than 4000: VITRINE_MAX_URI_LENGTH"):
        upsert("p", NOW, {"title": "x", "images": ["a" * 4001]}, limits)
