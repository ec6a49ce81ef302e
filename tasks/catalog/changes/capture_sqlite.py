"""SQLite's triggers that capture changes of `products` and of its table of pictures."""

from collections.abc import Sequence

from tasks.catalog.product_pictures import IMAGES, PICTURE_ROWS
from tasks.catalog.sources.database import DatabaseColumn, quoted, sql_literal
from tasks.catalog.sources.pictures import NO_PICTURES

NAME = "vitrine_capture"
CLOCK = "vitrine_clock"
OPERATIONS = ("insert", "update", "delete")
AT_ONCE = 40
"""Columns of one json_object, which takes at most 100 arguments in older releases."""
NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
TICK = f"UPDATE {CLOCK} SET at = max(at + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"  # microseconds
TICKED = f"(SELECT strftime('%Y-%m-%dT%H:%M:%S', at / 1000000, 'unixepoch') || printf('.%06dZ', at % 1000000) FROM {CLOCK})"
"""The time of a change where pictures are captured: a product's row and its pictures change in one transaction, within one
millisecond, and of two events the later one must win. A table of one row gives each its own microsecond."""


def removing() -> list[str]:
    """Statements that remove what `installing` made."""
    triggers = [f"{NAME}_{operation}" for operation in OPERATIONS]
    triggers += [f"{NAME}_images_{operation}" for operation in OPERATIONS]
    return [*(f"DROP TRIGGER IF EXISTS {name}" for name in triggers), f"DROP TABLE IF EXISTS {CLOCK}"]


def installing(columns: Sequence[DatabaseColumn], pictures: Sequence[str]) -> list[str]:
    """Statements for the columns of products and those of product_images (none: it is not there)."""
    names = {c.name: c for c in columns}
    now, tick = (TICKED, f"{TICK}; ") if pictures else (NOW, "")
    dated = "updated_at" in names
    insert, update = (_at(now, changed, bool(pictures)) if dated else now for changed in (False, True))
    old = _json(names["product_id"].of("OLD"))
    gone = f"json_object('kind', 'delete', 'product_id', {old}, 'updated_at', {now})"
    moved = f"INSERT INTO outbox (event, priority) SELECT {gone}, 1 WHERE OLD.product_id IS NOT NEW.product_id; {tick}"

    def upsert(at: str, row: str = "NEW") -> str:
        return (
            f"json_object('kind', 'upsert', 'product_id', {_json(names['product_id'].of(row))}, 'updated_at', {at}, "
            f"'product', {_row(columns, pictures, row)}), {_priority(names, row)}"
        )

    made = [
        *(
            f"CREATE TRIGGER {NAME}_{operation} AFTER {operation} ON products BEGIN {tick}{moved if operation == 'update' else ''}"
            f"INSERT INTO outbox (event, priority) SELECT {upsert(at)}{_shown(names, pictures, 'NEW')}; END"
            for operation, at in (("insert", insert), ("update", update))
        ),
        f"CREATE TRIGGER {NAME}_delete AFTER DELETE ON products BEGIN {tick}"
        f"INSERT INTO outbox (event, priority) VALUES ({gone}, 1); END",
    ]
    if not pictures:
        return made
    ahead = "strftime('%Y-%m-%dT%H:%M:%fZ', p.updated_at, '+0.001 seconds')"
    at = f"CASE WHEN julianday(p.updated_at) > julianday('now') THEN {ahead} ELSE {TICKED} END" if dated else TICKED
    for operation in OPERATIONS:
        owners = {"insert": ["NEW"], "update": ["OLD", "NEW"], "delete": ["OLD"]}[operation]
        shown = _shown(names, pictures, "p")
        whose = " OR ".join(f"p.product_id = {owner}.product_id" for owner in owners)
        told = f"INSERT INTO outbox (event, priority) SELECT {upsert(at, 'p')} FROM products AS p{shown} AND ({whose})"
        made.append(f"CREATE TRIGGER {NAME}_images_{operation} AFTER {operation} ON {PICTURE_ROWS} BEGIN {TICK}; {told}; END")
    return [f"CREATE TABLE {CLOCK} AS SELECT 0 AS at", *made]


def _json(value: str) -> str:
    """A value that JSON can carry: json_object refuses blobs, and that would refuse the shop's own write."""
    return f"CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END"


def _at(now: str, changed: bool, pictures: bool) -> str:
    """The time of an event: the row's own where it was set anew. With pictures only where that is still to come, since theirs are
    the times of the changes."""
    own = f"coalesce(replace(NEW.updated_at, ' ', 'T'), {now})"
    if pictures:
        own = f"CASE WHEN julianday(NEW.updated_at) <= julianday('now') THEN {now} ELSE {own} END"
    # A time that was not touched is the time of an earlier state.
    return f"CASE WHEN NEW.updated_at IS NOT OLD.updated_at THEN {own} ELSE {now} END" if changed else own


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


def _shown(names: dict[str, DatabaseColumn], pictures: Sequence[str], row: str) -> str:
    """The condition that a product has a picture: one that gets its first in another table is told of then."""
    if not pictures:
        return ""
    own = [f"coalesce({names[n].of(row)}, '') NOT IN ('', '[]')" for n in ("image", "image_uri", IMAGES) if n in names]
    return f" WHERE ({' OR '.join([*own, f'EXISTS (SELECT 1 FROM {_rows(pictures, row)})'])})"
