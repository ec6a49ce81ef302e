"""SQLite's triggers that capture changes of `products` and of its table of pictures.

A trigger of SQLite cannot catch an error, and fails where a table that it reads is gone: so none reads another table of the shop's than
its own. Where there are pictures, triggers only note which product was touched, and whoever reads the outbox makes the events
(`telling`): a shop that drops and fills either table anew is never in our way, nor we in its.
"""

from collections.abc import Sequence

from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.sources.database import DatabaseColumn, quoted, sql_literal
from tasks.catalog.sources.pictures import NO_PICTURES

NAME = "vitrine_capture"
CLOCK = "vitrine_clock"
OPERATIONS = ("insert", "update", "delete")
AT_ONCE = 40
"""Columns of one json_object, which takes at most 100 arguments in older releases."""
NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
TICK = f"UPDATE {CLOCK} SET at = max(at + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"  # microseconds
TOUCHED = "vitrine_touched"
"""Table of the products whose row (`of_row` 1) or pictures (0) were changed, each `at` a microsecond of its own: a product's row and its
pictures change within one millisecond, and of two events the later one must win."""


def removing() -> list[str]:
    """Statements that remove what `installing` made."""
    triggers = [f"{NAME}_{operation}" for operation in OPERATIONS]
    triggers += [f"{NAME}_images_{operation}" for operation in OPERATIONS]
    return [
        *(f"DROP TRIGGER IF EXISTS {name}" for name in triggers),
        *(f"DROP TABLE IF EXISTS {name}" for name in (CLOCK, TOUCHED)),
    ]


def installing(columns: Sequence[DatabaseColumn], pictures: bool) -> list[str]:
    """Statements for the columns of products; with `pictures`, product_images is there."""
    if pictures:
        return [
            f"CREATE TABLE {CLOCK} AS SELECT 0 AS at",
            f"CREATE TABLE {TOUCHED} (id INTEGER PRIMARY KEY AUTOINCREMENT, product_id, at INTEGER, of_row INTEGER)",
            *_noting("products", NAME, 1),
            *_noting(PICTURE_ROWS, f"{NAME}_images", 0),
        ]
    names = {c.name: c for c in columns}
    dated = "updated_at" in names
    insert, update = (_at(changed) if dated else NOW for changed in (False, True))
    old = _json(names["product_id"].of("OLD"))
    gone = f"json_object('kind', 'delete', 'product_id', {old}, 'updated_at', {NOW})"
    moved = f"INSERT INTO outbox (event, priority) SELECT {gone}, 1 WHERE OLD.product_id IS NOT NEW.product_id; "
    return [
        *(
            f"CREATE TRIGGER {NAME}_{operation} AFTER {operation} ON products BEGIN {moved if operation == 'update' else ''}"
            f"INSERT INTO outbox (event, priority) SELECT {_upsert(columns, (), at, 'NEW')}; END"
            for operation, at in (("insert", insert), ("update", update))
        ),
        f"CREATE TRIGGER {NAME}_delete AFTER DELETE ON products BEGIN INSERT INTO outbox (event, priority) VALUES ({gone}, 1); END",
    ]


def telling(columns: Sequence[DatabaseColumn], pictures: Sequence[str], last: int) -> list[str]:
    """Statements that make events of what was touched, up to the id `last`: each product as it is now, with the columns that products
    and product_images (none: it is not there any more) have now."""
    names = {c.name: c for c in columns}
    touched = (
        f"(SELECT product_id, max(at) AS at, max(of_row) AS of_row FROM {TOUCHED} WHERE id <= {last} GROUP BY product_id) AS t"
    )
    at = "strftime('%Y-%m-%dT%H:%M:%S', t.at / 1000000, 'unixepoch') || printf('.%06dZ', t.at % 1000000)"
    gone = f"json_object('kind', 'delete', 'product_id', {_json('t.product_id')}, 'updated_at', {at})"
    if "updated_at" in names:  # an event of a time that is still to come would win
        ahead = "strftime('%Y-%m-%dT%H:%M:%fZ', p.updated_at, '+0.001 seconds')"
        at = f"CASE WHEN julianday(p.updated_at) > julianday('now') THEN {ahead} ELSE {at} END"
    return [
        f"INSERT INTO outbox (event, priority) SELECT {_upsert(columns, pictures, at, 'p')} FROM {touched} CROSS JOIN products AS p "
        "ON p.product_id = t.product_id ORDER BY t.at",
        f"INSERT INTO outbox (event, priority) SELECT {gone}, 1 FROM {touched} WHERE t.of_row AND t.product_id IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM products AS p WHERE p.product_id = t.product_id) ORDER BY t.at",
        f"DELETE FROM {TOUCHED} WHERE id <= {last}",
    ]


def _noting(table: str, name: str, of_row: int) -> list[str]:
    def note(row: str) -> str:
        return f"{TICK}; INSERT INTO {TOUCHED} (product_id, at, of_row) SELECT {row}.product_id, at, {of_row} FROM {CLOCK};"

    notes = {"insert": note("NEW"), "update": f"{note('OLD')} {note('NEW')}", "delete": note("OLD")}
    return [
        f"CREATE TRIGGER {name}_{operation} AFTER {operation} ON {table} BEGIN {notes[operation]} END" for operation in OPERATIONS
    ]


def _upsert(columns: Sequence[DatabaseColumn], pictures: Sequence[str], at: str, row: str) -> str:
    """Event and priority of a product's row."""
    names = {c.name: c for c in columns}
    return (
        f"json_object('kind', 'upsert', 'product_id', {_json(names['product_id'].of(row))}, 'updated_at', {at}, "
        f"'product', {_row(columns, pictures, row)}), {_priority(names, row)}"
    )


def _json(value: str) -> str:
    """A value that JSON can carry: json_object refuses blobs, and that would refuse the shop's own write."""
    return f"CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END"


def _at(changed: bool) -> str:
    """The time of an event: the row's own where it was set anew."""
    own = f"coalesce(replace(NEW.updated_at, ' ', 'T'), {NOW})"
    # A time that was not touched is the time of an earlier state.
    return f"CASE WHEN NEW.updated_at IS NOT OLD.updated_at THEN {own} ELSE {NOW} END" if changed else own


def _priority(names: dict[str, DatabaseColumn], row: str) -> str:
    return f"coalesce({row}.priority, 0) <> 0" if "priority" in names else "0"


def _row(columns: Sequence[DatabaseColumn], pictures: Sequence[str], row: str) -> str:
    """The product as JSON, without what the event says itself."""
    told = [f"{sql_literal(c.name)}, {_json(c.of(row))}" for c in columns if c.name not in ("product_id", "updated_at")]
    told += [f"'{PICTURE_ROWS}', {_pictures(pictures, row)}"] if pictures else []
    pieces = ["json_object(" + ", ".join(told[n : n + AT_ONCE]) + ")" for n in range(0, len(told), AT_ONCE)]
    found = pieces[0]
    for piece in pieces[1:]:
        found = f"json_patch({found}, {piece})"  # which drops missing values, as an event may
    return found


def _pictures(columns: Sequence[str], row: str) -> str:
    """The addresses of a product's pictures as a JSON array, in the order of a snapshot."""
    order = "i.position IS NULL, CAST(i.position AS REAL), " if "position" in columns else ""
    rows = f"SELECT {_uri(columns)} AS uri FROM {_rows(columns, row)} ORDER BY {order}{_uri(columns)}"
    return f"(SELECT json_group_array(uri) FROM ({rows}))"


def _uri(columns: Sequence[str]) -> str:
    return f"CAST(i.{quoted('image' if 'image' in columns else 'image_uri')} AS TEXT)"


def _rows(columns: Sequence[str], row: str) -> str:
    kinds = ", ".join(map(sql_literal, NO_PICTURES))
    shown = f" AND lower(trim(coalesce(i.kind, ''))) NOT IN ({kinds})" if "kind" in columns else ""
    return f"{PICTURE_ROWS} AS i WHERE i.product_id = {row}.product_id AND {_uri(columns)} <> ''{shown}"
