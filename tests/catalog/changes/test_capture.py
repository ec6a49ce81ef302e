"""A database that captures its own changes: what its programs do to `products` is what the events say."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.catalog.changes.capture import install_triggers, remove_triggers
from tasks.catalog.changes.event import Event, MalformedEvent, read_event
from tasks.catalog.changes.source import open_changes
from tasks.catalog.sources.open import open_source
from tasks.errors import CatalogError
from tasks.settings import PROJECT
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


def run_postgres(uri: str, *commands: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection:
        for command in commands:
            with connection.cursor() as cursor:
                cursor.execute(command)
        connection.commit()


def with_products(uri: str, columns: str = "product_id text PRIMARY KEY, title text, image text") -> None:
    run_postgres(
        uri, "DROP TABLE IF EXISTS products, outbox CASCADE", f"CREATE TABLE products ({columns})",
        "INSERT INTO products (product_id, title, image) VALUES ('a', 'A', 'a.jpg'), ('b', 'B', 'b.jpg')",
    )  # fmt: skip
    install_triggers(uri)


@pytest.mark.parametrize(
    "first",
    [
        "SET search_path TO app", "SET search_path TO ''", "SET ROLE shopapp", "SET DateStyle TO 'SQL, DMY'",
        "SET standard_conforming_strings TO off", "SET TimeZone TO 'Asia/Tokyo'",
    ],
)  # fmt: skip
def test_a_shop_s_session_of_any_kind_writes_and_is_captured(first: str, postgres: str, tmp_path: Path) -> None:
    run_postgres(postgres, "DROP SCHEMA IF EXISTS app CASCADE", "CREATE SCHEMA app")
    with_products(postgres, "product_id text PRIMARY KEY, title text, image text, updated_at timestamptz DEFAULT now()")
    run_postgres(postgres, "DO $$ BEGIN CREATE ROLE shopapp; EXCEPTION WHEN OTHERS THEN NULL; END $$")
    run_postgres(postgres, "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON products TO shopapp")
    run_postgres(
        postgres, first, "UPDATE public.products SET title = title || '!'", "DELETE FROM public.products WHERE product_id = 'a'",
        "INSERT INTO public.products VALUES ('c', 'C', 'c.jpg')",
    )  # fmt: skip
    found = [(e.kind, e.product_id) for e in captured(postgres, tmp_path)]
    assert found == [("upsert", "a"), ("upsert", "b"), ("delete", "a"), ("upsert", "c")]


def test_the_documented_grants_are_enough_for_the_pipelines_role(postgres: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```sql\n(.*?)```", (PROJECT / "docs" / "operate" / "catalogue.md").read_text(), re.DOTALL)
    tables, grants = (re.sub(r"--.*", "", block).split(";")[:-1] for block in blocks)
    run_postgres(
        postgres, "DROP TABLE IF EXISTS products, photos, outbox, outbox_dead CASCADE", *tables, "CREATE ROLE vitrine LOGIN"
    )
    run_postgres(postgres, *grants, "INSERT INTO products (product_id, title, image) VALUES ('a', 'A', 'a.jpg')")
    install_triggers(postgres)  # by the owner, once
    run_postgres(postgres, "UPDATE products SET title = 'B'", "INSERT INTO outbox (event) VALUES ('nonsense')")
    uri = postgres.replace("//postgres", "//vitrine", 1)
    with open_source(uri) as source:
        assert [row["title"] for batch in source.products() for row in batch.to_pylist()] == ["B"]
        assert list(source.photos()) is not None
    with open_changes("outbox:", uri, tmp_path) as queue:
        first, second = queue.receive(10, 0)
        queue.acknowledge([first.handle])
        queue.dead_letter([(second, "no JSON")])
        assert (queue.count_waiting(), queue.requeue(), queue.count_waiting()) == (0, 1, 1)
        queue.send([read_event(first.text, datetime.now(UTC))])
    with pytest.raises(Exception, match="permission denied for table products"):
        run_postgres(uri, "DELETE FROM products")


def test_a_truncate_says_that_everything_is_gone(postgres: str, tmp_path: Path) -> None:
    with_products(postgres)
    run_postgres(postgres, "TRUNCATE products", "INSERT INTO products VALUES ('a', 'A2', 'a.jpg')")
    found = captured(postgres, tmp_path)
    assert sorted((e.kind, e.product_id) for e in found) == [("delete", "a"), ("delete", "b"), ("upsert", "a")]
    assert max((e for e in found if e.product_id == "a"), key=lambda e: e.order).kind == "upsert"


@pytest.mark.parametrize(
    "broken",
    [
        "DROP TABLE outbox",
        "ALTER TABLE outbox ADD COLUMN wanted text NOT NULL",
        "ALTER TABLE products RENAME COLUMN title TO name",
    ],
)
def test_a_shop_s_write_goes_through_when_capture_cannot(broken: str, postgres: str) -> None:
    with_products(postgres)
    run_postgres(
        postgres,
        broken,
        "UPDATE products SET image = 'c.jpg'",
        "DELETE FROM products WHERE product_id = 'b'",
        "TRUNCATE products",
    )


def test_sqlite_captures_many_columns_and_blobs(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    names = [f"\"column {n} ''\"" for n in range(150)]
    with sqlite3.connect(path) as shop:
        shop.execute(f"CREATE TABLE products (product_id TEXT, title TEXT, image TEXT, {', '.join(names)})")
        install_triggers(f"sqlite:///{path}")
        shop.execute(
            f"INSERT INTO products (product_id, title, image, {names[0]}, {names[149]}) VALUES ('a', 'A', 'a.jpg', x'41', 'last')"
        )
        shop.execute("INSERT INTO products (product_id, title, image) VALUES (x'ff', x'00ff', 'a.jpg')")
    with open_changes("outbox:", f"sqlite:///{path}", tmp_path) as source:
        first, second = source.receive(10, 0)
    event = read_event(first.text, datetime.now(UTC))
    assert (event.product["column 0 ''"], event.product["column 149 ''"]) == ("A", "last")
    with pytest.raises(MalformedEvent):
        read_event(second.text, datetime.now(UTC))
