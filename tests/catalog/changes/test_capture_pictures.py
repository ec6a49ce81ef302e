"""Pictures of a table of their own are captured: the last event of a product says what a snapshot would, whatever was done to it."""

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.catalog.changes.capture import install_triggers, remove_triggers
from tasks.catalog.changes.event import Event, read_event
from tasks.catalog.changes.source import open_changes
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.schema import DEFAULT_LIMITS, RowLimits
from tasks.catalog.snapshot import product_table, take_snapshot
from tasks.catalog.sources.source import SourceOptions
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

Run = Callable[[list[str]], None]
PRODUCTS = "CREATE TABLE products (product_id {id} PRIMARY KEY, title TEXT, image TEXT, updated_at {time})"
PICTURES = "CREATE TABLE product_images (product_id {id}, image TEXT, position INTEGER, kind TEXT)"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Run]:
    """The uri of a database without tables, and a function that runs commands in one transaction."""
    if request.param == "sqlite":

        def run(commands: list[str]) -> None:
            connection = sqlite3.connect(tmp_path / "shop.db")
            with connection:
                connection.execute("BEGIN")
                for command in commands:
                    connection.execute(command)
            connection.close()

        return f"sqlite:///{tmp_path}/shop.db", run
    uri = request.getfixturevalue("postgres")

    def run_postgres(commands: list[str]) -> None:
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(uri) as connection:
            for command in commands:
                with connection.cursor() as cursor:
                    cursor.execute(command)
            connection.commit()

    run_postgres(["DROP TABLE IF EXISTS product_images, products, outbox CASCADE"])
    return uri, run_postgres


def make_tables(run: Run, uri: str, kind: str = "TEXT") -> None:
    time = "TEXT" if uri.startswith("sqlite") else "TIMESTAMPTZ"
    run([PRODUCTS.format(id=kind, time=time), PICTURES.format(id=kind)])
    install_triggers(uri)
    install_triggers(uri)  # again changes nothing


def last_events(uri: str, home: Path, limits: RowLimits = DEFAULT_LIMITS) -> dict[str, Event]:
    with open_changes("outbox:", uri, home) as source:
        events = [read_event(m.text, datetime.now(UTC), limits) for m in source.receive(10_000, 0)]
    return {e.product_id: e for e in sorted(events, key=lambda e: e.order)}


def drawn(rng: random.Random) -> list[str]:
    """One transaction of a shop's program."""
    product, picture = rng.randrange(6), rng.randrange(8)
    own = rng.choice(["NULL", "CURRENT_TIMESTAMP", "'2026-11-25 10:00:00'"])
    image = rng.choice(["NULL", "''", f"'{picture}.jpg'"])
    changes = [
        f"INSERT INTO products VALUES ('{product}', 'T', {image}, {own}) ON CONFLICT (product_id) DO UPDATE SET title = 'new'",
        f"UPDATE products SET title = 'T{rng.random()}', updated_at = {own} WHERE product_id = '{product}'",
        f"UPDATE products SET image = {image} WHERE product_id = '{product}'",
        f"DELETE FROM products WHERE product_id = '{product}'",
        f"DELETE FROM product_images WHERE product_id = '{product}'",
        f"DELETE FROM product_images WHERE product_id = '{product}' AND image = '{picture}.jpg'",
        f"UPDATE product_images SET position = {rng.randrange(5)}, kind = 'Swatch' WHERE image = '{picture}.jpg'",
        f"UPDATE product_images SET product_id = '{product}' WHERE image = '{picture}.jpg'",
    ]
    adds = [
        f"INSERT INTO product_images VALUES ('{product}', '{rng.randrange(8)}.jpg', {rng.choice(['NULL', '1', '2'])}, NULL)"
        for _ in range(rng.randrange(4))
    ]
    return rng.sample(changes, rng.randint(1, 3)) + adds


@pytest.mark.parametrize(("seed", "text_only"), [(0, False), (1, True)])
def test_the_last_event_of_a_product_says_what_a_snapshot_says(
    shop: tuple[str, Run], tmp_path: Path, seed: int, text_only: bool
) -> None:
    """A product without any picture too: one that words find, or none."""
    uri, run = shop
    limits = RowLimits(text_only=text_only)
    make_tables(run, uri)
    rng = random.Random(seed)
    for _ in range(40):
        run(drawn(rng))
    run([f"INSERT INTO products VALUES ('{n}', 'T', 'a.jpg', NULL) ON CONFLICT (product_id) DO NOTHING" for n in range(3)])
    run(["INSERT INTO product_images VALUES ('0', 'last.jpg', 9, 'front')"])
    run(["INSERT INTO products VALUES ('bare', 'T', NULL, NULL)"])
    taken = take_snapshot(uri, str(tmp_path / "snapshots"), "one", SourceOptions(limits=limits))
    table = product_table(taken.uri, ["product_id", "title", "image_uri", IMAGES])
    expected = {r["product_id"]: (r["title"], r["image_uri"], r[IMAGES]) for r in table.to_pylist()}
    last = last_events(uri, tmp_path, limits)
    told = {i: (e.product["title"], e.product["image_uri"], e.product.get(IMAGES, [])) for i, e in last.items() if e.product}
    assert told == expected
    assert (last["bare"].kind, "bare" in expected) == (("upsert", True) if text_only else ("delete", False))
    assert "last.jpg" in expected["0"][2]
    assert "product_images" not in str(told)


def test_what_is_done_to_a_product_without_any_picture_is_told_each_time(shop: tuple[str, Run], tmp_path: Path) -> None:
    uri, run = shop
    make_tables(run, uri)
    words = RowLimits(text_only=True)
    kinds = []
    for command in (
        "INSERT INTO products VALUES ('a', 'A', NULL, NULL)", "UPDATE products SET title = 'B'", "DELETE FROM products",
        "INSERT INTO products VALUES ('a', 'C', 'a.jpg', NULL)", "UPDATE products SET image = NULL",
        "INSERT INTO product_images VALUES ('a', 'x.jpg', 1, NULL)", "DELETE FROM product_images",
    ):  # fmt: skip
        run([command])
        last, plain = last_events(uri, tmp_path, words)["a"], last_events(uri, tmp_path)["a"]
        assert last.updated_at == plain.updated_at
        kinds.append((last.product.get("title"), last.product.get("image_uri"), plain.kind))
    assert kinds == [
        ("A", "", "delete"), ("B", "", "delete"), (None, None, "delete"), ("C", "a.jpg", "upsert"), ("C", "", "delete"),
        ("C", "x.jpg", "upsert"), ("C", "", "delete"),
    ]  # fmt: skip


def test_pictures_of_products_with_whole_numbers_are_captured_and_a_statement_is_one_event(
    shop: tuple[str, Run], tmp_path: Path
) -> None:
    uri, run = shop
    make_tables(run, uri, "INTEGER")
    run(["INSERT INTO products VALUES (1, 'A', NULL, NULL), (2, 'B', NULL, NULL)"])
    run(["INSERT INTO product_images VALUES (1, 'b.jpg', 2, NULL), (1, 'a.jpg', 1, NULL), (2, 'c.jpg', NULL, NULL)"])
    last = last_events(uri, tmp_path)
    assert last["1"].product == {"title": "A", "image_uri": "a.jpg", IMAGES: ["b.jpg"]}
    assert last["2"].product == {"title": "B", "image_uri": "c.jpg"}
    remove_triggers(uri)
    run(["INSERT INTO product_images VALUES (1, 'd.jpg', 3, NULL)"])
    assert last_events(uri, tmp_path) == last


def test_sqlite_either_table_may_be_dropped_and_made_anew_while_the_other_is_written(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shop.db"
    products, pictures = PRODUCTS.format(id="TEXT", time="TEXT"), PICTURES.format(id="TEXT")
    connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    for command in (
        products, pictures, "INSERT INTO products VALUES ('a', 'A', 'a.jpg', NULL)",
        "INSERT INTO product_images VALUES ('a', 'x.jpg', 1, NULL)",
    ):  # fmt: skip
        connection.execute(command)
    install_triggers(uri)
    connection.execute("UPDATE products SET title = 'B'")
    with open_changes("outbox:", uri, tmp_path) as source:
        assert source.count_waiting() == 2  # the row before and after
        assert source.oldest_at() is not None
    assert last_events(uri, tmp_path)["a"].product[IMAGES] == ["x.jpg"]

    connection.execute("DROP TABLE product_images")
    connection.execute("UPDATE products SET title = 'C'")
    assert last_events(uri, tmp_path)["a"].product == {"title": "C", "image_uri": "a.jpg"}

    connection.execute(pictures)
    install_triggers(uri)
    connection.execute("DROP TABLE products")
    connection.execute("INSERT INTO product_images VALUES ('a', 'y.jpg', 1, NULL), ('of no product', 'z.jpg', 1, NULL)")
    assert last_events(uri, tmp_path)["a"].product["title"] == "C", "the change waits for the table"
    connection.execute(products)
    connection.execute("INSERT INTO products VALUES ('a', 'D', 'a.jpg', NULL)")
    connection.close()
    last = last_events(uri, tmp_path)
    assert last["a"].product == {"title": "D", "image_uri": "a.jpg", IMAGES: ["y.jpg"]}
    assert "of no product" not in last


def test_a_truncate_of_the_pictures_is_told(postgres: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from adbc_driver_postgresql import dbapi

    commands = [
        "DROP TABLE IF EXISTS product_images, products, outbox CASCADE",
        PRODUCTS.format(id="TEXT", time="TIMESTAMPTZ"),
        PICTURES.format(id="TEXT"),
        "INSERT INTO products VALUES ('a', 'A', 'a.jpg', NULL), ('b', 'B', 'b.jpg', NULL)",
        "INSERT INTO product_images VALUES ('a', 'x.jpg', 1, NULL)",
    ]
    with dbapi.connect(postgres) as connection, connection.cursor() as cursor:
        for command in commands:
            cursor.execute(command)
        connection.commit()
        install_triggers(postgres)
        cursor.execute("TRUNCATE product_images")
        connection.commit()
    last = last_events(postgres, tmp_path)
    assert {i: e.product.get(IMAGES, []) for i, e in last.items()} == {"a": []}


@contextmanager
def two_transactions(postgres: str) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Two connections, each with a cursor, to a database with one product and no further picture, whose tables are captured."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres) as first, dbapi.connect(postgres) as second, first.cursor() as one, second.cursor() as two:
        for command in (
            "DROP TABLE IF EXISTS product_images, products, outbox CASCADE", PRODUCTS.format(id="TEXT", time="TIMESTAMPTZ"),
            PICTURES.format(id="TEXT"), "INSERT INTO products VALUES ('a', 'A', 'a.jpg', NULL)",
        ):  # fmt: skip
            one.execute(command)
        first.commit()
        install_triggers(postgres)
        yield first, one, second, two


def test_of_two_transactions_at_once_the_last_event_tells_what_both_did(postgres: str, tmp_path: Path) -> None:
    with two_transactions(postgres) as (first, one, second, two):
        one.execute("ALTER FUNCTION vitrine_capture_images() SET lock_timeout = '60s'")
        first.commit()
        one.execute("INSERT INTO product_images VALUES ('a', 'x.jpg', 1, NULL)")
        waiting = threading.Thread(target=two.execute, args=("INSERT INTO product_images VALUES ('a', 'y.jpg', 2, NULL)",))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "the second waits for the product's row"
        first.commit()
        waiting.join()
        second.commit()
    assert last_events(postgres, tmp_path)["a"].product[IMAGES] == ["x.jpg", "y.jpg"]


def test_a_picture_is_added_while_another_transaction_holds_its_product(postgres: str, tmp_path: Path) -> None:
    with two_transactions(postgres) as (first, one, second, two):
        one.execute("UPDATE products SET title = 'B'")
        two.execute("INSERT INTO product_images VALUES ('a', 'x.jpg', 1, NULL)")
        second.commit()
        first.rollback()
    assert last_events(postgres, tmp_path)["a"].product == {"title": "A", "image_uri": "a.jpg", IMAGES: ["x.jpg"]}
