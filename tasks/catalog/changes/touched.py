"""Events of what SQLite's triggers noted where products have a table of pictures (tasks/catalog/changes/capture_sqlite.py)."""

import logging

from tasks.catalog.changes.capture_sqlite import TOUCHED, telling
from tasks.catalog.changes.outbox_database import Database, Sqlite
from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.sources import sqlite
from tasks.catalog.sources.database import DatabaseColumn

log = logging.getLogger(__name__)

AT_ONCE = 5_000
"""Most changes that become events in one transaction, which the shop's own writes wait for."""


def touched_count(database: Database) -> int:
    """How many changes are noted and not yet told."""
    there = isinstance(database, Sqlite) and database.exists(TOUCHED)
    return int(database.fetch(f"SELECT count(*) FROM {TOUCHED}")[0][0]) if there else 0


def touched_since(database: Database) -> float | None:
    """When the first of them was made, in seconds since 1970."""
    at = database.fetch(f"SELECT min(at) FROM {TOUCHED}")[0][0] if touched_count(database) else None
    return None if at is None else at / 1e6


def tell_some(database: Database) -> None:
    """Makes events of the first AT_ONCE changes, in a transaction of its own."""
    with database.transaction():
        tell_touched(database, AT_ONCE)


def tell_touched(database: Database, most: int = 1_000_000_000) -> None:
    """Makes events of at most so many changes, within the caller's transaction. While the tables cannot be read, as while the shop makes
    them anew, the changes wait."""
    if not touched_count(database):
        return
    assert isinstance(database, Sqlite)
    last = database.fetch(f"SELECT max(id) FROM (SELECT id FROM {TOUCHED} ORDER BY id LIMIT {most})")[0][0]
    columns = [c for c in sqlite_columns(database) if not c.left_out]
    names = {name for name, _ in sqlite_picture_columns(database)}
    pictures = sorted(names) if "product_id" in names and names & {"image", "image_uri"} else []
    if not {"product_id", "title"} <= {c.name for c in columns}:
        log.warning("the changes of products wait: there is no table products with the columns product_id and title")
        return
    for command in telling(columns, pictures, last):
        database.execute(command)


def sqlite_columns(database: Sqlite) -> list[DatabaseColumn]:
    """The columns of products; none where there is no such table."""
    return sqlite.table_columns(database.fetch("SELECT name, upper(type) FROM pragma_table_info('products')"), None)


def sqlite_picture_columns(database: Sqlite) -> list[tuple[str, str]]:
    """The columns (name, type) of the table product_images; none where there is no such table."""
    return database.fetch(f"SELECT name, type FROM pragma_table_info('{PICTURE_ROWS}')") if database.exists(PICTURE_ROWS) else []
