"""Changes found by reading the catalogue: what differs from what was seen, once, whatever is killed in between."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.changes import comparison, watermark
from tasks.catalog.changes.comparison import ComparedCatalogue, Comparison
from tasks.catalog.changes.event import Event, read_event
from tasks.catalog.changes.outbox import open_database
from tasks.catalog.changes.seen import Seen
from tasks.catalog.changes.source import open_changes
from tasks.catalog.changes.watermark import Watermark
from tasks.catalog.snapshot import take_snapshot
from tasks.catalog.sources import SourceOptions
from tasks.errors import CatalogError
from tests.servers import postgres_server

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)
"""Long before any snapshot is begun, which takes the real time."""
OLD = NOW - timedelta(days=30)


class Shop:
    """A Parquet table that is written anew, the snapshot that its index version was built from, and a clock that goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, NOW
        self.rows = {f"p{n}": {"title": f"T{n}", "image": f"{n}.jpg", "size": n, "updated_at": OLD} for n in range(6)}
        self.write()
        self.baseline = self.snapshot("first")

    def write(self) -> None:
        rows = [{"product_id": i} | row for i, row in reversed(self.rows.items())]
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "products.parquet", row_group_size=2)

    def snapshot(self, name: str) -> str:
        return take_snapshot(str(self.folder), str(self.folder / "snapshots"), name).uri

    def open(self, database: str = "", **more: float) -> Comparison:
        self.now += timedelta(hours=1)
        catalogue = replace(ComparedCatalogue(str(self.folder), baseline=self.baseline), **more)  # type: ignore[arg-type]
        return Comparison(*open_database(database or f"sqlite:///{self.folder}/changes.db"), catalogue, lambda: self.now)

    def receive(self, acknowledge: bool = True, **more: float) -> list[Event]:
        """The changes that a run would take."""
        source = self.open(**more)
        messages = source.receive(100, 0)
        if acknowledge:
            source.acknowledge([m.handle for m in messages])
        source.close()
        return [read_event(m.text, self.now + timedelta(days=30)) for m in messages]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def told(events: list[Event]) -> list[tuple[str, str, datetime]]:
    return sorted((e.product_id, e.kind, e.updated_at) for e in events)


@pytest.mark.parametrize("batch", [50_000, 2])
def test_what_differs_from_the_live_versions_snapshot_is_told_once(
    shop: Shop, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.catalog.changes import seen
    from tasks.catalog.sources import folder

    monkeypatch.setattr(folder, "BATCH_ROWS", batch)
    monkeypatch.setattr(seen, "AT_ONCE", batch)
    assert shop.receive() == []
    shop.rows["p1"] |= {"title": "new", "updated_at": NOW}
    shop.rows["p2"] |= {"size": 70}
    shop.rows["p9"] = {"title": "T9", "image": "9.jpg", "size": 9, "updated_at": OLD}
    del shop.rows["p5"], shop.rows["p0"]
    shop.write()
    found = shop.receive()
    at = shop.now
    assert told(found) == [
        ("p0", "delete", at), ("p1", "upsert", NOW), ("p2", "upsert", at), ("p5", "delete", at), ("p9", "upsert", at),
    ]  # fmt: skip
    assert next(e for e in found if e.product_id == "p2").product["size"] == 70
    shop.write()  # another file, the same rows
    assert shop.receive() == []
    shop.rows["p5"] = {"title": "T5", "image": "5.jpg", "size": 5, "updated_at": OLD}
    shop.write()
    assert told(shop.receive()) == [("p5", "upsert", shop.now)], "one that comes back is newer than its delete"


def test_what_was_found_stays_until_it_is_acknowledged(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.rows["p1"]["title"] = "new"
    shop.write()
    first = shop.receive(acknowledge=False)
    assert [e.text for e in shop.receive(acknowledge=False)] == [e.text for e in first]
    shop.rows["p1"]["title"] = "newer"
    shop.write()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Seen, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.receive()
    assert [e.product["title"] for e in shop.receive()] == ["new", "newer"]
    assert shop.receive() == []


def test_a_rebuild_starts_from_its_own_snapshot(shop: Shop) -> None:
    shop.receive()
    shop.rows["p1"]["title"] = "seen by the rebuild"
    shop.write()
    shop.baseline = shop.snapshot("second")
    shop.rows["p2"]["title"] = "after it"
    shop.write()
    assert told(shop.receive()) == [("p2", "upsert", shop.now)]
    shop.rows = {i: row | {"colour": "red"} for i, row in shop.rows.items()}
    shop.write()
    assert shop.receive() == [], "a column that the index does not have yet"
    shop.baseline = shop.snapshot("third")
    shop.rows["p3"]["colour"] = "blue"
    shop.write()
    assert [e.product_id for e in shop.receive()] == ["p3"]


def test_what_was_told_while_a_rebuild_ran_and_is_no_longer_so_is_told_again(shop: Shop) -> None:
    shop.receive()
    live, shop.baseline = shop.baseline, shop.snapshot("second")
    rebuilt, shop.baseline = shop.baseline, live
    shop.now = datetime.now(UTC)
    shop.rows["p1"]["size"] = 100
    gone = shop.rows.pop("p2")
    shop.rows["new"] = {"title": "N", "image": "n.jpg", "size": 1, "updated_at": OLD}
    shop.write()
    assert [i for i, _, _ in told(shop.receive())] == ["new", "p1", "p2"], "which the rebuild's version carries over"
    shop.rows["p1"]["size"], shop.rows["p2"] = 1, gone
    del shop.rows["new"]
    shop.write()
    shop.baseline = rebuilt
    at = shop.now + timedelta(hours=1)
    assert told(shop.receive()) == [("new", "delete", at), ("p1", "upsert", at), ("p2", "upsert", at)]
    assert shop.receive() == []


def test_a_querys_answer_may_change_though_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE products (product_id text, title text, image text)")
        database.execute("INSERT INTO products VALUES ('a', 'T', 'a.jpg')")
    options = SourceOptions(query="SELECT product_id, title, image, (random() & 0xFFFFFFFFFF) AS answer FROM products")
    uri = f"sqlite:///{path}"
    catalogue = ComparedCatalogue(uri, options, take_snapshot(uri, str(tmp_path / "s"), "s", options).uri)
    answers = set()
    for _ in range(3):
        with closing(Comparison(*open_database(f"sqlite:///{tmp_path}/changes.db"), catalogue)) as source:
            (message,) = source.receive(10, 0)
            answers.add(read_event(message.text, datetime.now(UTC)).product["answer"])
            source.acknowledge([message.handle])
    assert len(answers) == 3


def test_numbers_that_no_double_holds_differ() -> None:
    def digests(*sizes: float) -> list[str]:
        return comparison.content_digests(pa.table({"size": list(sizes)}), ["size"])

    assert len(set(digests(2**60, 2**60 + 1, -(2**60)))) == 3
    assert digests(7) == digests(7.0)


def test_rows_that_cannot_be_used_stay_as_they_were(shop: Shop) -> None:
    shop.rows["p1"]["title"] = ""
    shop.write()
    assert shop.receive() == []


def test_an_export_that_lost_much_changes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "LEAST_DELETES", 1)
    del shop.rows["p1"], shop.rows["p2"]
    shop.write()
    with pytest.raises(
        CatalogError, match="2 of 6 products are gone since the last comparison, allowed 20 %: VITRINE_MOST_DROPPED"
    ):
        shop.receive()
    assert len(shop.receive(most_dropped=0.5)) == 2


def test_a_time_to_come_does_not_hide_what_follows(shop: Shop) -> None:
    ahead = NOW + timedelta(days=20)
    shop.rows["p1"] |= {"title": "a", "updated_at": ahead}
    shop.write()
    shop.baseline = shop.snapshot("second")
    shop.receive()
    shop.rows["p1"]["title"] = "b"
    shop.write()
    ((_, _, at),) = told(shop.receive())
    assert at > ahead, "newer than what the index believes"


def test_nothing_is_compared_before_there_is_a_version(shop: Shop) -> None:
    shop.baseline = ""
    with pytest.raises(CatalogError, match="there is no index version to compare the catalogue with"):
        shop.receive()


def test_the_settings_open_it(shop: Shop, tmp_path: Path) -> None:
    catalogue = ComparedCatalogue(str(shop.folder), baseline=shop.baseline)
    with open_changes("compare:", str(shop.folder), tmp_path / "home", catalogue) as source:
        assert (source.name, source.receive(9, 0), source.count_waiting()) == (
            "comparison of the catalogue (outbox in changes.db)",
            [],
            0,
        )
    with (
        open_changes("updated_at:", str(shop.folder), tmp_path / "home", catalogue) as source,
        pytest.raises(CatalogError, match="only a database is read by updated_at"),
    ):
        source.receive(9, 0)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.mark.slow
def test_what_was_seen_may_lie_in_postgresql(shop: Shop, postgres: str) -> None:
    for expected in ([], ["p1"], []):
        source = shop.open(postgres)
        messages = source.receive(9, 0)
        source.acknowledge([m.handle for m in messages])
        source.close()
        assert [read_event(m.text, shop.now).product_id for m in messages] == expected
        shop.rows["p1"]["title"] = "O'Neill's"
        shop.write()


def rows_of(watermark: Watermark) -> list[tuple[str, datetime]]:
    messages = watermark.receive(100, 0)
    watermark.acknowledge([m.handle for m in messages])
    watermark.close()
    return sorted((e.product_id, e.updated_at) for e in (read_event(m.text, NOW + timedelta(days=30)) for m in messages))


def check_watermark(tmp_path: Path, uri: str, write: object, kind: str) -> None:
    """Inserts by `write(id, time as the database has it)`; the clock stands at `now`."""
    now = datetime.now(UTC).replace(microsecond=0)
    baseline = take_snapshot(uri, str(tmp_path / "s"), f"{kind}-first").uri

    def look(at: datetime) -> list[tuple[str, datetime]]:
        database = open_database(f"sqlite:///{tmp_path}/{kind}.db")
        return rows_of(Watermark(*database, ComparedCatalogue(uri, baseline=baseline), clock=lambda: at))

    assert look(now) == []
    soon, ahead = now + timedelta(minutes=30), now + timedelta(hours=5)
    write("b", soon)  # type: ignore[operator]
    write("ahead", ahead)  # type: ignore[operator]
    assert look(now + timedelta(hours=1)) == [("b", soon)]
    assert look(now + timedelta(hours=1)) == [], "what was told is not told again"
    late = soon - timedelta(minutes=5)
    write("late", late)  # type: ignore[operator]
    assert look(now + timedelta(hours=2)) == [("late", late)], "a transaction that committed late"
    write("c", now + timedelta(hours=3))  # type: ignore[operator]
    assert look(now + timedelta(hours=4)) == [("c", now + timedelta(hours=3))], "the watermark did not pass now"
    assert look(now + timedelta(hours=6)) == [("ahead", ahead)]


def test_rows_of_sqlite_by_their_time(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"

    def write(name: str, at: datetime) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("INSERT INTO products VALUES (?, 'T', 'a.jpg', ?)", (name, at.strftime("%Y-%m-%d %H:%M:%S")))

    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE products (product_id text, title text, image text, updated_at text)")
    write("old", OLD)
    check_watermark(tmp_path, f"sqlite:///{path}", write, "text")


def test_a_row_that_changes_twice_within_a_second_is_told_twice_and_times_may_be_written_in_any_way(tmp_path: Path) -> None:
    path, now = tmp_path / "shop.db", datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)

    def write(titles: dict[str, str]) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            for title, at in titles.items():
                database.execute("INSERT OR REPLACE INTO products VALUES (?, ?, 'a.jpg', ?)", (at[-5:], title, at))

    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE products (product_id text primary key, title text, image text, updated_at text)")
    odd = ("%Y-%m-%dT%H:%M:%S+0000", "%Y-%m-%d %H:%M:%S UTC", "%Y%m%dT%H%M%SZ", "%Y-%m-%dT%H:%M:%S,500")
    write({"old": "2020-01-01 00:00:00+0000"})
    baseline = take_snapshot(f"sqlite:///{path}", str(tmp_path / "s"), "s").uri

    def look() -> list[tuple[str, datetime]]:
        database = open_database(f"sqlite:///{tmp_path}/seen.db")
        catalogue = ComparedCatalogue(f"sqlite:///{path}", baseline=baseline)
        return rows_of(Watermark(*database, catalogue, clock=lambda: now + timedelta(hours=1)))

    assert look() == []
    write({f"T{n}": now.strftime(form) for n, form in enumerate(odd)})
    first = dict(look())
    assert len(first) == len(odd)
    write({"again": now.strftime(odd[0])})
    (((again, at),)) = look()
    assert at > first[again]
    assert look() == []


def test_a_row_that_changes_after_the_snapshot_and_within_its_second_is_told_as_later_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "AROUND", timedelta(minutes=1))  # the snapshot may begin seconds after the row's time
    path = tmp_path / "shop.db"

    def write(title: str, at: datetime) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("INSERT OR REPLACE INTO products VALUES ('a', ?, 'a.jpg', ?)", (title, f"{at:%Y-%m-%d %H:%M:%S}"))

    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE products (product_id text primary key, title text, image text, updated_at text)")

    def look(baseline: str) -> list[tuple[str, datetime]]:
        catalogue = ComparedCatalogue(f"sqlite:///{path}", baseline=baseline)
        return rows_of(Watermark(*open_database(f"sqlite:///{tmp_path}/seen.db"), catalogue))

    for night in ("first", "second"):
        second = datetime.now(UTC).replace(microsecond=0)
        write(f"before the {night}", second)
        baseline = take_snapshot(f"sqlite:///{path}", str(tmp_path / "s"), night).uri
        write(f"after the {night}", second)
        (((_, at),)) = look(baseline)
        assert at > second, "what the snapshot says is of this very second"
        assert look(baseline) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "text"])
def test_rows_of_postgresql_by_their_time(tmp_path: Path, postgres: str, kind: str) -> None:
    from adbc_driver_postgresql import dbapi

    def run(statement: str) -> None:
        with dbapi.connect(postgres, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def write(name: str, at: datetime) -> None:
        zone = "Z" if kind == "timestamptz" else ""
        run(f"INSERT INTO products VALUES ('{name}', 'T', 'a.jpg', '{at:%Y-%m-%d %H:%M:%S}{zone}')")

    run("DROP TABLE IF EXISTS products")
    run(f"CREATE TABLE products (product_id text, title text, image text, updated_at {kind})")
    write("old", OLD)
    check_watermark(tmp_path, postgres, write, kind)


def test_a_picture_added_reordered_or_removed_is_a_change_of_its_product(shop: Shop) -> None:
    assert shop.receive() == []
    csv = shop.folder / "images.csv"
    for images, further in (
        (["x.jpg", "y.jpg"], ["x.jpg", "y.jpg"]), (["y.jpg", "x.jpg"], ["y.jpg", "x.jpg"]), (["y.jpg"], ["y.jpg"]), ([], None),
    ):  # fmt: skip
        lines = [f"p1,{image},{position}" for position, image in enumerate(images)]
        csv.write_text("\n".join(["product_id,image,position", "p2,2.jpg,1", *lines]) + "\n")
        (event,) = shop.receive()
        assert (event.product_id, event.product["image_uri"], event.product.get("images")) == ("p1", "1.jpg", further)
        assert shop.receive() == []


def test_rows_by_updated_at_carry_their_pictures(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("CREATE TABLE products (product_id TEXT, title TEXT, image TEXT, updated_at TEXT)")
        database.execute("CREATE TABLE product_images (product_id TEXT, image TEXT)")
        database.executemany("INSERT INTO products VALUES (?, 'T', 'a.jpg', '2026-11-01')", [("p1",), ("p2",)])
    uri = f"sqlite:///{tmp_path}/shop.db"
    baseline = take_snapshot(uri, str(tmp_path / "snapshots"), "first").uri
    now = datetime.now(UTC) + timedelta(hours=1)

    def receive() -> list[Event]:
        catalogue = ComparedCatalogue(uri, baseline=baseline)
        source = Watermark(*open_database(f"sqlite:///{tmp_path}/changes.db"), catalogue, lambda: now)
        messages = source.receive(100, 0)
        source.acknowledge([m.handle for m in messages])
        source.close()
        return [read_event(m.text, now) for m in messages]

    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.executemany("INSERT INTO product_images VALUES (?, 'b.jpg')", [("p1",), ("p2",)])
    assert receive() == [], "its product's updated_at was not touched"
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("UPDATE products SET updated_at = ? WHERE product_id = 'p2'", [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"])
    (event,) = receive()
    assert (event.product_id, event.product["images"]) == ("p2", ["b.jpg"])
