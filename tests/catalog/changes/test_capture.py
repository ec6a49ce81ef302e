"""A database that captures its own changes: what its programs do to `products` is what the events say."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.catalog.changes.capture import install_triggers, remove_triggers
from tasks.catalog.changes.event import Event, read_event
from tasks.catalog.changes.source import open_changes
from tasks.errors import CatalogError
from tests.servers import postgres_server

Run = Callable[[str], None]
TABLE = (
    "CREATE TABLE products (product_id TEXT PRIMARY KEY, title TEXT, image TEXT, price REAL, priority {flag}, updated_at {time})"
)
STEPS = (
    "INSERT INTO products VALUES ('a', 'Größe ''1''', 'a.jpg', 1.5, {yes}, '2026-11-01 10:00:00')",
    "UPDATE products SET price = 2.5 WHERE product_id = 'a'",
    "UPDATE products SET price = 3.5, priority = {no}, updated_at = '2026-11-02 10:00:00.25' WHERE product_id = 'a'",
    "UPDATE products SET product_id = 'b' WHERE product_id = 'a'",
    "DELETE FROM products",
)


def captured(uri: str, home: Path) -> list[Event]:
    with open_changes("outbox:", uri, home) as source:
        messages = sorted(source.receive(100, 0), key=lambda m: int(m.handle))
    return [read_event(m.text, datetime.now(UTC)) for m in messages]


def check(uri: str, home: Path, run: Run, **words: str) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    install_triggers(uri)
    install_triggers(uri)  # again changes nothing
    for step in STEPS:
        run(step.format(**words))
    first, second, third, gone, renamed, last = captured(uri, home)
    assert (first.product_id, first.updated_at) == ("a", datetime(2026, 11, 1, 10, tzinfo=UTC))
    assert first.product == {"title": "Größe '1'", "image_uri": "a.jpg", "price": 1.5, "priority": True}
    assert second.updated_at >= began, "the row's own time was not touched, so the change has its own"
    assert (third.product["price"], third.updated_at) == (3.5, datetime(2026, 11, 2, 10, 0, 0, 250000, tzinfo=UTC))
    assert [(e.kind, e.product_id) for e in (gone, renamed, last)] == [("delete", "a"), ("upsert", "b"), ("delete", "b")]
    remove_triggers(uri)
    run(STEPS[0].format(**words))
    assert len(captured(uri, home)) == 6


def test_sqlite_captures_what_its_programs_do(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"

    def run(command: str) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(command)
        connection.close()

    run(TABLE.format(flag="INTEGER", time="TEXT"))
    check(f"sqlite:///{path}", tmp_path, run, yes="1", no="0")


@pytest.mark.slow
def test_postgres_captures_what_its_programs_do(tmp_path: Path) -> None:
    from adbc_driver_postgresql import dbapi

    with postgres_server() as uri:

        def run(command: str) -> None:
            with dbapi.connect(uri) as connection, connection.cursor() as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")
                cursor.execute(command)
                connection.commit()

        run(TABLE.format(flag="BOOLEAN", time="TIMESTAMPTZ"))
        check(uri, tmp_path, run, yes="TRUE", no="FALSE")


def test_a_change_that_is_rolled_back_was_none(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute(TABLE.format(flag="INTEGER", time="TEXT"))
    install_triggers(f"sqlite:///{path}")
    connection.execute(STEPS[0].format(yes="1"))
    connection.rollback()
    connection.close()
    assert captured(f"sqlite:///{path}", tmp_path) == []


def test_a_catalogue_that_cannot_capture_says_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="only a database can capture"):
        install_triggers(str(tmp_path))
    with pytest.raises(CatalogError, match="there is no such database"):
        install_triggers(f"sqlite:///{tmp_path / 'new.db'}")
    assert not (tmp_path / "new.db").exists()
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(CatalogError, match="no table products"):
        install_triggers(f"sqlite:///{tmp_path / 'empty.db'}")
