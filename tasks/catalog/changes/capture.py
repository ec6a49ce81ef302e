"""Change data capture by triggers: every change of `products` and of its pictures is written to the outbox in the same transaction.

The shop's own programs need not know of the outbox, and their writes never fail because of it: what a trigger cannot write is left
to the next rebuild, which reads the whole catalogue. An upsert carries the row as it is after the change, each value by the same
SQL expression as in a snapshot, with the pictures that product_images has of it, and the row's own `updated_at`; where that was not
set anew (or there is no such column, or a table of pictures) the time of the change itself, so that the change counts.
"""

from serving.contract import addresses
from tasks.catalog.changes import capture_postgresql, capture_sqlite
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.changes.outbox_database import Postgres, Sqlite
from tasks.catalog.changes.touched import sqlite_columns, sqlite_picture_columns, tell_touched, touched_count
from tasks.catalog.product_pictures import IMAGES, PICTURE_ROWS
from tasks.catalog.schema import ALIASES, REQUIRED
from tasks.catalog.sources import postgresql
from tasks.catalog.sources.database import DatabaseColumn, quoted
from tasks.errors import CatalogError


def install_triggers(catalog_uri: str) -> dict[str, str]:
    """Installs the triggers for the current columns of `products` and `product_images`; gives why a column is not captured, by name.

    Raises CatalogError when there is no table products, or a required column is missing.
    """
    outbox = _outbox(catalog_uri)
    try:
        database = outbox.database
        if not database.exists("products"):
            raise CatalogError(
                f"{addresses.without_secrets(catalog_uri)}: there is no table products whose changes could be captured; a view has none, "
                "its changes are sent with: vitrine changes send"
            )
        outbox.make_tables()
        pictures = _picture_columns(database)
        columns = _columns(database, bool(pictures))
        with database.transaction():
            tell_touched(database)
            for command in _removing(database) + _installing(database, [c for c in columns if not c.left_out], pictures):
                database.execute(command)
        return {c.name: c.left_out for c in columns if c.left_out}
    finally:
        outbox.close()


def remove_triggers(catalog_uri: str) -> None:
    """Removes the triggers; events already in the outbox stay."""
    outbox = _outbox(catalog_uri)
    try:
        if touched_count(outbox.database):
            outbox.make_tables()
        with outbox.database.transaction():
            tell_touched(outbox.database)
            for command in _removing(outbox.database):
                outbox.database.execute(command)
    finally:
        outbox.close()


def _outbox(catalog_uri: str) -> Outbox:
    if not catalog_uri.startswith(("sqlite:///", "postgresql://", "postgres://")):
        shown = addresses.without_secrets(catalog_uri)
        raise CatalogError(f"{shown}: only a database can capture its changes; send them with: vitrine changes send")
    return Outbox.open(catalog_uri, existing=True)


def _columns(database: object, pictures: bool) -> list[DatabaseColumn]:
    """The columns of products with the expressions of a snapshot."""
    if isinstance(database, Sqlite):
        found = sqlite_columns(database)
    else:
        assert isinstance(database, Postgres)
        found = postgresql.table_columns(database.fetch(postgresql.COLUMNS))
    named = {ALIASES.get(c.name, c.name) for c in found if not c.left_out}
    listed = pictures or IMAGES in named
    missing = [c for c in REQUIRED if c not in named and not (listed and c == "image_uri")]
    if missing:
        raise CatalogError(f"the table products has no column {missing[0]}; it has {', '.join(c.name for c in found)}")
    return found


def _picture_columns(database: object) -> tuple[tuple[str, str], ...]:
    """The columns of product_images (name, type); none where there is no such table, or it has no product or picture."""
    if isinstance(database, Sqlite):
        found = sqlite_picture_columns(database)
    else:
        assert isinstance(database, Postgres)
        found = database.fetch(
            "SELECT a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_class c "
            f"ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') WHERE a.attrelid = to_regclass('{PICTURE_ROWS}') AND a.attnum > 0 "
            "AND NOT a.attisdropped"
        )
    names = {name for name, _ in found}
    return tuple((name, kind) for name, kind in found) if "product_id" in names and names & {"image", "image_uri"} else ()


def _removing(database: object) -> list[str]:
    if isinstance(database, Sqlite):
        return capture_sqlite.removing()
    assert isinstance(database, Postgres)
    return capture_postgresql.removing(database.exists(PICTURE_ROWS))


def _installing(database: object, columns: list[DatabaseColumn], pictures: tuple[tuple[str, str], ...]) -> list[str]:
    if isinstance(database, Sqlite):
        return capture_sqlite.installing(columns, bool(pictures))
    assert isinstance(database, Postgres)

    def qualified(table: str) -> str:
        rows = database.fetch(
            f"SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('{table}')"
        )
        return f"{quoted(rows[0][0])}.{table}"

    kind = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass('products') AND attname = 'product_id'"
    tables = capture_postgresql.Tables(
        qualified("products"),
        qualified("outbox"),
        qualified(PICTURE_ROWS) if pictures else "",
        pictures,
        database.fetch(kind)[0][0],
    )
    return capture_postgresql.installing(columns, tables)
