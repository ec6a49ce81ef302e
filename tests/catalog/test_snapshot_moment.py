"""A snapshot is of one moment: whatever others write meanwhile, and whenever the copy is killed and gone on with."""

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.catalog import snapshot as snapshots
from tasks.catalog.changes.outbox_database import Postgres
from tasks.catalog.changes.seen import Seen, SeenProduct
from tasks.catalog.snapshot import JOURNAL, product_table, take_snapshot, unusable_rows
from tasks.catalog.sources import folder, open_source, sqlite
from tests.servers import postgres_server

ROWS = 1000
PART = 100
COLUMNS = "product_id text primary key, title text, price numeric, note text, weight, image text"


@pytest.fixture
def shop(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"CREATE TABLE products ({COLUMNS})")
        database.execute("CREATE TABLE photos (photo text, product_id text, split text)")
        rows = (
            (f"p{n:04d}", f"Product {n}", n if n < 500 else n + 0.5, None if n < 500 else "late", n, "a.jpg") for n in range(ROWS)
        )
        database.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", rows)
    database.close()
    return f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PART_ROWS", PART)
    for module in (sqlite, folder):
        monkeypatch.setattr(module, "BATCH_ROWS", 64)


KILLED = """
    import os, signal, sys
    from tasks.catalog import snapshot
    from tasks.catalog.sources import sqlite
    snapshot.PART_ROWS, sqlite.BATCH_ROWS = 100, 64
    write = snapshot.SnapshotWriter.write
    def dies(writer, kind, table, *counts):
        if writer.rows >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        write(writer, kind, table, *counts)
    snapshot.SnapshotWriter.write = dies
    snapshot.take_snapshot(sys.argv[1], sys.argv[2], "one")
"""


def killed(uri: str, folder: Path, after: int) -> dict[str, int]:
    """Takes a snapshot in a process that is killed once so many rows are written; the times of what it left."""
    code = [sys.executable, "-c", textwrap.dedent(KILLED), uri, str(folder), str(after)]
    assert subprocess.run(code).returncode == -9
    return {f.name: f.stat().st_mtime_ns for f in (folder / "one").glob("part-*")}


def test_a_killed_copy_goes_on_after_its_last_part_with_the_same_bytes(shop: str, tmp_path: Path) -> None:
    left = killed(shop, tmp_path / "a", 300)
    assert len(left) == 3
    resumed, calm = take_snapshot(shop, str(tmp_path / "a"), "one"), take_snapshot(shop, str(tmp_path / "b"), "one")
    assert {n: (tmp_path / "a" / "one" / n).stat().st_mtime_ns for n in left} == left, "a finished part was copied again"
    assert (resumed.rows, resumed.content_sha256) == (ROWS, calm.content_sha256)
    for part in (tmp_path / "b" / "one").glob("part-*"):
        assert (tmp_path / "a" / "one" / part.name).read_bytes() == part.read_bytes()
    assert not (tmp_path / "a" / "one" / JOURNAL).exists()


def test_a_row_set_aside_behind_the_last_part_is_counted_once_after_a_kill(shop: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("UPDATE products SET title = '' WHERE product_id IN ('p0010', 'p0310', 'p0350')")
    database.close()
    killed(shop, tmp_path / "a", 300)
    resumed = take_snapshot(shop, str(tmp_path / "a"), "one")
    assert (resumed.rows, resumed.quarantined_rows) == (ROWS - 3, 3)
    assert sorted(row["product_id"] for row in unusable_rows(resumed.uri)) == ["p0010", "p0310", "p0350"]


def test_a_catalogue_that_changed_since_the_kill_is_copied_anew(shop: str, tmp_path: Path) -> None:
    killed(shop, tmp_path / "a", 300)
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("UPDATE products SET title = 'new' WHERE product_id IN ('p0007', 'p0907')")
    database.close()
    taken = take_snapshot(shop, str(tmp_path / "a"), "one")
    titles = dict(zip(*(product_table(taken.uri)[n].to_pylist() for n in ("product_id", "title")), strict=True))
    assert (titles["p0007"], titles["p0907"], len(titles)) == ("new", "new", ROWS)


def test_numbers_and_texts_that_come_late_keep_their_type(shop: str, tmp_path: Path) -> None:
    table = product_table(take_snapshot(shop, str(tmp_path / "a"), "one").uri)
    assert table["price"].to_pylist()[:2] == [0.0, 1.0]
    assert table["price"][999].as_py() == 999.5
    assert (table["note"][0].as_py(), table["note"][999].as_py()) == (None, "late")
    assert table["weight"][3].as_py() == 3


def test_a_product_without_an_id_and_a_price_that_is_none_are_set_aside(shop: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("UPDATE products SET price = 'cheap' WHERE product_id = 'p0003'")
        database.execute("INSERT INTO products (title, image) VALUES ('nameless', 'a.jpg')")
    database.close()
    taken = take_snapshot(shop, str(tmp_path / "a"), "one")
    assert (taken.rows, taken.quarantined_rows) == (ROWS - 1, 2)
    assert [row["sentence"] for row in unusable_rows(taken.uri)] == [
        "product_id: is empty; every product needs one", "product 'p0003': price: 'cheap' is not a number",
    ]  # fmt: skip


def seen(uri: str, write: Callable[[], object]) -> tuple[int, int, str]:
    """Products and photos that a source sees when `write` happens after it was opened, and its moment."""
    with open_source(uri) as source:
        write()
        return sum(b.num_rows for b in source.products()), sum(b.num_rows for b in source.photos()), source.moment


def test_what_is_written_after_the_copy_began_is_not_in_it(shop: str, tmp_path: Path) -> None:
    # In a process of its own: the locks of two copies of SQLite in one process do not see each other.
    code = """
        import sqlite3, sys
        with sqlite3.connect(sys.argv[1]) as database:
            database.execute("INSERT INTO products (product_id, title, image) VALUES ('q', 'q', 'q.jpg')")
            database.execute("INSERT INTO photos VALUES ('q.jpg', 'q', 'train')")
        database.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "shop.db")]
    first = seen(shop, lambda: subprocess.run(command, check=True))
    assert first[:2] == (ROWS, 0)
    second, third = seen(shop, lambda: None), seen(shop, lambda: None)
    assert second[:2] == (ROWS + 1, 1)
    assert first[2] != second[2] == third[2]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_ids_of_a_file_in_any_encoding_come_in_the_same_order(tmp_path: Path, encoding: str) -> None:
    """SQLite compares texts by the bytes of the file's encoding."""
    ids = ["a", "b", "Ā", "Ăb", "\uffee", "😀"]
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute(f"PRAGMA encoding = '{encoding}'")
        database.execute(f"CREATE TABLE products ({COLUMNS})")
        database.executemany("INSERT INTO products (product_id, title, image) VALUES (?, 'Größe', 'a.jpg')", [(i,) for i in ids])
    database.close()
    uri = f"sqlite:///{tmp_path}/shop.db"
    assert product_table(take_snapshot(uri, str(tmp_path / "s"), "s").uri)["product_id"].to_pylist() == ids
    with open_source(uri) as source:
        assert [i for b in source.products("Ā") for i in b["product_id"].to_pylist()] == ids[3:]


@pytest.fixture
def postgres() -> Iterator[str]:
    from adbc_driver_postgresql import dbapi

    with postgres_server() as uri:
        with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET autovacuum = off")  # which commits now and then, and every commit is another moment
            cursor.execute("SELECT pg_reload_conf()")
        yield uri


@pytest.mark.slow
def test_postgresql_too_is_read_at_one_moment_and_gone_on_with(postgres: str, tmp_path: Path) -> None:
    from adbc_driver_postgresql import dbapi

    def run(*statements: str) -> None:
        with dbapi.connect(postgres, autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    run(
        f"CREATE TABLE products ({COLUMNS.replace('weight', 'weight integer')})",
        "CREATE TABLE photos (photo text, product_id text, split text)",
        "INSERT INTO products SELECT 'p' || lpad(n::text, 4, '0'), 'Product ''' || n, n, NULL, n, 'a.jpg' "
        f"FROM generate_series(0, {ROWS - 1}) n",
    )
    new = "INSERT INTO products (product_id, title, image) VALUES ('q', 'q', 'q.jpg')"
    first = seen(postgres, lambda: run(new, "INSERT INTO photos VALUES ('q.jpg', 'q', 'train')"))
    second, third = seen(postgres, lambda: None), seen(postgres, lambda: None)
    assert (first[:2], second[:2]) == ((ROWS, 0), (ROWS + 1, 1))
    assert first[2] != second[2] == third[2]
    left = killed(postgres, tmp_path / "a", 300)
    resumed, calm = take_snapshot(postgres, str(tmp_path / "a"), "one"), take_snapshot(postgres, str(tmp_path / "b"), "one")
    assert {n: (tmp_path / "a" / "one" / n).stat().st_mtime_ns for n in left} == left
    assert (resumed.rows, resumed.photos, resumed.content_sha256) == (ROWS + 1, 1, calm.content_sha256)


@pytest.mark.slow
def test_a_server_that_reads_backslashes_as_escapes_compares_ids_as_they_are(postgres: str, tmp_path: Path) -> None:
    from adbc_driver_postgresql import dbapi

    ids = ["a\\", "a\\b'", "a\\n"]
    with dbapi.connect(postgres, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER ROLE CURRENT_USER SET standard_conforming_strings = off")
        cursor.execute(f"CREATE TABLE products ({COLUMNS.replace('weight', 'weight integer')})")
        for product_id in ids:
            cursor.execute("INSERT INTO products (product_id, title, image) VALUES ($1, 'T', 'a.jpg')", (product_id,))
    with open_source(postgres) as source:
        assert [[i for b in source.products(after) for i in b["product_id"].to_pylist()] for after in ids] == [
            ids[1:],
            ids[2:],
            [],
        ]
    database = Postgres(postgres)
    seen = Seen(database)
    seen.make_tables()
    with database.transaction():
        seen.write([SeenProduct(i, "digest", datetime(2026, 1, 1, tzinfo=UTC)) for i in ids])
    assert sorted(seen.of(ids)) == ids
    database.close()
