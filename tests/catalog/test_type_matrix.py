"""Every type of every source: the snapshot, the captured change and the sent change end as the same value."""

import datetime as dt
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.changes.capture import install_triggers
from tasks.catalog.changes.drain import UpsertSource
from tasks.catalog.changes.event import Event, read_event, upsert
from tasks.catalog.changes.ledger import entries
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.changes.sending import events_of_catalogue, events_of_file
from tasks.catalog.schema import read_products
from tasks.catalog.snapshot import product_table, take_snapshot, unusable_rows
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

NOW = dt.datetime.now(dt.UTC)
NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
SAID = ["title", "category", "price", "in_stock", "popularity", "image_uri"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


def through_event(event: Event, columns: pa.Schema) -> dict[str, Any]:
    """The event as a row of the next version's snapshot, by way of the ledger."""
    rows = entries([read_event(event.text, NOW)], NOW)
    (batch,) = UpsertSource("changes", "", rows, columns).products()
    found = read_products(batch, "changes")
    assert not found.unusable
    (row,) = found.table.to_pylist()
    return dict(row)


def check(snapshot_row: dict[str, Any], events: list[Event], columns: pa.Schema, names: list[str]) -> None:
    for event in events:
        row = through_event(event, columns)
        assert row["product_id"] == snapshot_row["product_id"]
        assert {n: row[n] for n in names} == {n: snapshot_row[n] for n in names}


POSTGRES = [
    ("product_id uuid", "gen_random_uuid()", None),
    ("product_id bigint", "7", "7"),
    ("price numeric(10,2)", "12.50", 12.5),
    ("price money", "12.50", 12.5),
    ("price text", "'12.50'", 12.5),
    ("price int", "12", 12.0),
    ("price real", "0.5", 0.5),
    ("price numeric", "'NaN'", None),
    ("in_stock boolean", "false", False),
    ("in_stock smallint", "5", True),
    ("in_stock boolean", "NULL", True),
    ("category text[]", "ARRAY['Shoes', NULL, 'Boots']", ["Shoes", "Boots"]),
    ("category jsonb", """'["Shoes", "Boots"]'""", ["Shoes", "Boots"]),
    ("category text", "'Shoes > Boots'", ["Shoes", "Boots"]),
    ("popularity double precision", "0.25", 0.25),
    ("extra int", "5", 5),
    ("extra numeric(6,2)", "5.25", 5.25),
    ("extra boolean", "true", True),
    ("extra date", "'2026-11-25'", NOON.replace(hour=0)),
    ("extra timestamptz", "'2026-11-25 13:00+01'", NOON),
    ("extra timestamp", "'2026-11-25 12:00'", NOON),
    ("extra uuid", "'d269d055-a2db-45f7-9793-1ef2fe04c54e'", "d269d055-a2db-45f7-9793-1ef2fe04c54e"),
    ("extra text[]", "ARRAY['red', 'blue']", ["red", "blue"]),
    ("extra int[]", "ARRAY[38, 39]", ["38", "39"]),
    ("extra varchar(9)", "'x'", "x"),
    ("extra time", "'12:00'", "12:00:00"),
    ("extra inet", "'10.0.0.1'", "10.0.0.1/32"),
    ("extra interval", "'1 day'", "1 day"),
    ("extra text", "NULL", None),
    ('"Größe ""EU"" \'x\' %" text', "'42'", "42"),
]


@pytest.mark.parametrize(("column", "value", "expected"), POSTGRES)
def test_postgresql_types_end_the_same_everywhere(column: str, value: str, expected: Any, postgres: str, tmp_path: Path) -> None:
    name = column.rsplit(" ", 1)[0] if column.startswith('"') else column.split()[0]
    plain = {"product_id text": "'a'", "title text": "'A'", "image text": "'a.jpg'"}
    wanted = {column: value} | {c: v for c, v in plain.items() if c.split()[0] != name}
    run_postgres(
        postgres, "DROP TABLE IF EXISTS products, outbox", f"CREATE TABLE products ({', '.join(wanted)})",
        f"INSERT INTO products VALUES ({', '.join(wanted.values())})",
    )  # fmt: skip
    snapshot = take_snapshot(postgres, str(tmp_path), "one")
    install_triggers(postgres)
    run_postgres(postgres, "UPDATE products SET title = title")
    table = product_table(snapshot.uri)
    (row,) = table.to_pylist()
    own = name.strip('"').replace('""', '"')
    if expected is not None:
        assert row[own] == expected
    captured = received(postgres)
    sent = events_of_catalogue(postgres, [row["product_id"]], NOW)
    assert len(captured) == 1
    check(row, [*captured, *sent], table.schema, [*SAID, *([own] if own in table.column_names else [])])


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("updated_at timestamptz", "'infinity'", "years 1 to 9999"),
        ("extra date", "'-infinity'", "years 1 to 9999"),
        ("price double precision", "'Infinity'", "infinite"),
        ("price numeric", "1e309", "infinite"),
        ("extra numeric", "-1e309", "infinite"),
        ("price text", "'cheap'", "not a number"),
        ("title2 text", "'x'", ""),
    ],
)
def test_postgresql_values_that_cannot_be_read_set_their_row_aside_and_no_other(
    column: str, value: str, problem: str, postgres: str, tmp_path: Path
) -> None:
    run_postgres(
        postgres, "DROP TABLE IF EXISTS products, outbox", f"CREATE TABLE products (product_id text, title text, image text, {column})",
        f"INSERT INTO products VALUES ('a', 'A', 'a.jpg', {value}), ('b', 'B', 'b.jpg', NULL)",
    )  # fmt: skip
    snapshot = take_snapshot(postgres, str(tmp_path), "one")
    assert product_table(snapshot.uri)["product_id"].to_pylist() == (["b"] if problem else ["a", "b"])
    assert snapshot.quarantined_rows == bool(problem)
    for row in unusable_rows(snapshot.uri):
        assert (row["product_id"], row["column"]) == ("a", column.split()[0])
        assert problem in row["problem"]


@pytest.mark.parametrize(
    "column", ["extra jsonb", "extra bytea", "extra point", "extra int4range", "extra float8[]", "key bigint"]
)
def test_postgresql_types_that_no_filter_can_use_are_left_out_and_named(column: str, postgres: str, tmp_path: Path) -> None:
    name = column.split()[0]
    run_postgres(
        postgres, "DROP TABLE IF EXISTS products, outbox", f"CREATE TABLE products (product_id text, title text, image text, {column})",
        "INSERT INTO products VALUES ('a', 'A', 'a.jpg', NULL)",
    )  # fmt: skip
    snapshot = take_snapshot(postgres, str(tmp_path), "one")
    assert set(snapshot.left_out) == {name}
    assert "extra" not in product_table(snapshot.uri).column_names
    left_out = install_triggers(postgres)
    assert set(left_out) <= {name}
    run_postgres(postgres, "UPDATE products SET title = 'B'")
    assert len(received(postgres)) == 1


SQLITE = [
    ("product_id INTEGER PRIMARY KEY", "7", "7"),
    ("product_id TEXT", "'007'", "007"),
    ("price REAL", "12.5", 12.5),
    ("price DECIMAL(10,2)", "12", 12.0),
    ("price TEXT", "'12.50'", 12.5),
    ("price", "12.5", 12.5),
    ("in_stock BOOLEAN", "0", False),
    ("in_stock TEXT", "'yes'", True),
    ("in_stock INTEGER", "NULL", True),
    ("category TEXT", "'Shoes > Boots'", ["Shoes", "Boots"]),
    ("extra INTEGER", "5", 5),
    ("extra REAL", "5", 5.0),
    ("extra NUMERIC", "5.25", 5.25),
    ("extra DATETIME", "'2026-11-25 12:00:00'", "2026-11-25 12:00:00"),
    ("extra VARCHAR(9)", "'x'", "x"),
    ("extra", "'x'", "x"),
    ("extra INTEGER", "'many'", "many"),
    ('"Größe ""EU"" \'x\' %" TEXT', "'42'", "42"),
]


@pytest.mark.parametrize(("column", "value", "expected"), SQLITE)
def test_sqlite_types_end_the_same_everywhere(column: str, value: str, expected: Any, tmp_path: Path) -> None:
    name = column.rsplit(" ", 1)[0] if column.startswith('"') else column.split()[0]
    plain = {"product_id TEXT": "'a'", "title TEXT": "'A'", "image TEXT": "'a.jpg'"}
    wanted = {column: value} | {c: v for c, v in plain.items() if c.split()[0] != name}
    path, uri = tmp_path / "shop.db", f"sqlite:///{tmp_path / 'shop.db'}"
    run_sqlite(
        path, f"CREATE TABLE products ({', '.join(wanted)})", f"INSERT INTO products VALUES ({', '.join(wanted.values())})"
    )
    snapshot = take_snapshot(uri, str(tmp_path / "s"), "one")
    install_triggers(uri)
    run_sqlite(path, "UPDATE products SET title = title")
    table = product_table(snapshot.uri)
    (row,) = table.to_pylist()
    own = name.strip('"').replace('""', '"')
    assert row[own] == expected
    captured = received(uri)
    assert len(captured) == 1
    check(row, [*captured, *events_of_catalogue(uri, [row["product_id"]], NOW)], table.schema, [*SAID, own])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("title", "CAST(x'4dfc6c6c6572' AS TEXT)", "not UTF-8"),
        ("title", "x'00ff'", "not UTF-8"),
        ("title", "''", "is empty"),
        ("title", "NULL", "is empty"),
        ("image", "''", "is empty"),
        ("product_id", "''", "is empty"),
        ("price", "9e999", "infinite"),
        ("price", "'cheap'", "not a number"),
        ("price", "-1", "below 0"),
        ("price", "1e9", "VITRINE_MAX_PRICE"),
        ("title", f"'{'x' * 3000}'", "VITRINE_MAX_TITLE_LENGTH"),
    ],
)
def test_one_bad_row_is_set_aside_with_its_reason_and_the_catalogue_goes_on(
    column: str, value: str, says: str, tmp_path: Path
) -> None:
    path, uri = tmp_path / "shop.db", f"sqlite:///{tmp_path / 'shop.db'}"
    row = {"product_id": "'a'", "title": "'A'", "image": "'a.jpg'", "price": "1"} | {column: value}
    run_sqlite(
        path, "CREATE TABLE products (product_id, title TEXT, image TEXT, price REAL)",
        f"INSERT INTO products VALUES ({', '.join(row.values())})", "INSERT INTO products VALUES ('b', 'B', 'b.jpg', 2)",
    )  # fmt: skip
    snapshot = take_snapshot(uri, str(tmp_path / "s"), "one")
    assert product_table(snapshot.uri)["product_id"].to_pylist() == ["b"]
    (bad,) = unusable_rows(snapshot.uri)
    assert says in bad["sentence"], bad
    assert bad["column"] == column
    install_triggers(uri)
    run_sqlite(path, "UPDATE products SET title = title")  # never fails because of us


PARQUET: list[tuple[str, pa.Array, Any]] = [
    ("category", pa.array([["x", None]], pa.large_list(pa.large_string())), ["x"]),
    ("category", pa.array([["x", "y"]], pa.list_(pa.string(), 2)), ["x", "y"]),
    ("category", pa.array(["x > y"]).dictionary_encode(), ["x", "y"]),
    ("product_id", pa.array(["a"]).dictionary_encode(), "a"),
    ("product_id", pa.array(["a"], pa.string_view()), "a"),
    ("product_id", pa.array([7], pa.uint16()), "7"),
    ("title", pa.array(["A"], pa.large_string()), "A"),
    ("price", pa.array([1250], pa.int32()), 1250.0),
    ("price", pa.array([float("nan")]), None),
    ("price", pa.array(["12.50"]), 12.5),
    ("popularity", pa.array([0.5], pa.float16()), 0.5),
    ("in_stock", pa.array([None], pa.bool_()), True),
    ("in_stock", pa.array(["no"]), False),
    ("extra", pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ns")), NOON),
    ("extra", pa.array([NOON], pa.timestamp("ms", "Europe/Berlin")), NOON),
    ("extra", pa.array([NOON.date()], pa.date32()), NOON.replace(hour=0)),
    ("extra", pa.array([3], pa.uint8()), 3),
    ("extra", pa.array([True]), True),
]


@pytest.mark.parametrize(("name", "column", "expected"), PARQUET)
def test_parquet_types_end_the_same_everywhere(name: str, column: pa.Array, expected: Any, tmp_path: Path) -> None:
    columns = {"product_id": pa.array(["a"]), "title": pa.array(["A"]), "image": pa.array(["a.jpg"])} | {name: column}
    pq.write_table(pa.table(columns), tmp_path / "products.parquet")
    snapshot = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    table = product_table(snapshot.uri)
    (row,) = table.to_pylist()
    assert row[name] == expected
    sent = [*events_of_file(tmp_path / "products.parquet", NOW), *events_of_catalogue(str(tmp_path), [row["product_id"]], NOW)]
    check(row, sent, table.schema, [*SAID, name])


def test_columns_without_values_or_of_our_names_are_left_out_and_named(tmp_path: Path) -> None:
    columns = {"product_id": ["a"], "title": ["A"], "image": ["a.jpg"], "key": [5], "palette": ["red"], "blob": [b"x"]}
    pq.write_table(pa.table(columns).append_column("empty", pa.nulls(1)), tmp_path / "products.parquet")
    snapshot = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert set(snapshot.left_out) == {"key", "palette", "blob", "empty"}
    assert snapshot.left_out["empty"] == "it holds no value"


def received(uri: str) -> list[Event]:
    """The captured events."""
    with closing(Outbox.open(uri)) as outbox:
        return [read_event(m.text, NOW + dt.timedelta(days=999)) for m in outbox.receive(9, 0)]


def run_postgres(uri: str, *commands: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection:
        for command in commands:
            with connection.cursor() as cursor:
                cursor.execute(command)
        connection.commit()


def run_sqlite(path: Path, *commands: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for command in commands:
            connection.execute(command)


@pytest.mark.parametrize(
    ("said", "pictures"),
    [
        ({"image": "a.jpg", "images": ["b.jpg", "a.jpg", "b.jpg", ""]}, ["a.jpg", "b.jpg"]),
        ({"images": '["a.jpg", "b.jpg"]', "product_images": ["c.jpg"]}, ["a.jpg", "b.jpg", "c.jpg"]),
        ({"image": "a.jpg", "images": 7}, ["a.jpg"]),
        ({"image": "a.jpg", "images": None}, ["a.jpg"]),
    ],
)
def test_the_pictures_of_a_sent_change_are_those_of_a_snapshot(said: dict[str, Any], pictures: list[str], tmp_path: Path) -> None:
    event = upsert("p", NOON, {"title": "T"} | said)
    row = through_event(event, pa.schema([("size", pa.int64()), ("images", pa.list_(pa.string()))]))
    assert [row["image_uri"], *row["images"]] == pictures
    pq.write_table(pa.Table.from_pylist([{"product_id": "p", "title": "T"} | said]), tmp_path / "products.parquet")
    table = product_table(take_snapshot(str(tmp_path), str(tmp_path / "s"), "one").uri)
    (there,) = table.to_pylist()
    assert [there["image_uri"], *there.get("images", [])] == pictures
    assert ("images" in event.product) == (len(pictures) > 1)
