"""Change data capture by triggers: every change of `products` is written to the outbox in the same transaction.

The shop's own programs need not know of the outbox. An upsert carries the row as it is after the change and the row's own
`updated_at`; where that was not set anew (or there is no such column) the time of the change itself, so that the change counts.
"""

from collections.abc import Sequence

from serving.contract import addresses
from tasks.catalog.changes.outbox import Outbox, Postgres, Sqlite
from tasks.catalog.schema import ALIASES, REQUIRED
from tasks.errors import CatalogError

NAME = "vitrine_capture"
OPERATIONS = ("insert", "update", "delete")


def install_triggers(catalog_uri: str) -> None:
    """Installs the triggers for the current columns of `products`. Raises CatalogError when the table does not exist."""
    outbox = _outbox(catalog_uri)
    try:
        database = outbox.database
        if not database.exists("products"):
            raise CatalogError(f"{addresses.without_secrets(catalog_uri)}: there is no table products whose changes could be captured")
        outbox.make_tables()
        with database.transaction():
            for command in _removing(database) + _installing(database):
                database.execute(command)
    finally:
        outbox.close()


def remove_triggers(catalog_uri: str) -> None:
    """Removes the triggers; events already in the outbox stay."""
    outbox = _outbox(catalog_uri)
    try:
        with outbox.database.transaction():
            for command in _removing(outbox.database):
                outbox.database.execute(command)
    finally:
        outbox.close()


def _outbox(catalog_uri: str) -> Outbox:
    if not catalog_uri.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise CatalogError(f"{addresses.without_secrets(catalog_uri)}: only a database can capture its changes; send them with: vitrine changes send")
    return Outbox.open(catalog_uri, existing=True)


def _removing(database: object) -> list[str]:
    if isinstance(database, Sqlite):
        return [f"DROP TRIGGER IF EXISTS {NAME}_{operation}" for operation in OPERATIONS]
    return [f"DROP TRIGGER IF EXISTS {NAME} ON products", f"DROP FUNCTION IF EXISTS {NAME}()"]


def _installing(database: object) -> list[str]:
    if isinstance(database, Sqlite):
        columns = [str(row[1]) for row in database.fetch("PRAGMA table_info(products)")]
        return _sqlite(_checked(columns))
    assert isinstance(database, Postgres)
    found = database.fetch(
        "SELECT column_name::text FROM information_schema.columns "
        "WHERE table_name = 'products' AND table_schema = current_schema() ORDER BY ordinal_position"
    )
    return _postgres(_checked([str(row[0]) for row in found]))


def _checked(columns: Sequence[str]) -> Sequence[str]:
    named = {ALIASES.get(c, c) for c in columns}
    missing = [c for c in REQUIRED if c not in named]
    if missing:
        raise CatalogError(f"the table products has no column {missing[0]}; it has {', '.join(columns)}")
    return columns


SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


def _sqlite(columns: Sequence[str]) -> list[str]:
    row = ", ".join(f"'{c}', NEW.\"{c}\"" for c in columns if c not in ("product_id", "updated_at"))
    priority = "coalesce(NEW.priority, 0) <> 0" if "priority" in columns else "0"
    dated = "updated_at" in columns
    own = "replace(NEW.updated_at, ' ', 'T')"
    times = {
        "insert": f"coalesce({own}, {SQLITE_NOW})" if dated else SQLITE_NOW,
        # A time that was not touched is the time of an earlier state.
        "update": f"CASE WHEN NEW.updated_at IS NOT OLD.updated_at THEN coalesce({own}, {SQLITE_NOW}) ELSE {SQLITE_NOW} END"
        if dated
        else SQLITE_NOW,
    }
    made = [
        f"CREATE TRIGGER {NAME}_{operation} AFTER {operation} ON products BEGIN "
        f"{_sqlite_moved() if operation == 'update' else ''}"
        "INSERT INTO outbox (event, priority) VALUES (json_object('kind', 'upsert', 'product_id', NEW.product_id, "
        f"'updated_at', {at}, 'product', json_object({row})), {priority}); END"
        for operation, at in times.items()
    ]
    gone = f"json_object('kind', 'delete', 'product_id', OLD.product_id, 'updated_at', {SQLITE_NOW})"
    return [
        *made,
        f"CREATE TRIGGER {NAME}_delete AFTER DELETE ON products BEGIN INSERT INTO outbox (event, priority) VALUES ({gone}, 1); END",
    ]


def _sqlite_moved() -> str:
    """An update of product_id is a delete of the old id."""
    gone = f"json_object('kind', 'delete', 'product_id', OLD.product_id, 'updated_at', {SQLITE_NOW})"
    return f"INSERT INTO outbox (event, priority) SELECT {gone}, 1 WHERE OLD.product_id <> NEW.product_id; "


POSTGRES_NOW = """to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def _postgres(columns: Sequence[str]) -> list[str]:
    own = f"coalesce(new_row ->> 'updated_at', {POSTGRES_NOW})"
    untouched = "TG_OP = 'UPDATE' AND (new_row ->> 'updated_at') IS NOT DISTINCT FROM (to_jsonb(OLD) ->> 'updated_at')"
    function = f"""
CREATE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE new_row jsonb;
BEGIN
  IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.product_id <> NEW.product_id) THEN
    INSERT INTO outbox (event, priority) VALUES (jsonb_build_object('kind', 'delete', 'product_id', OLD.product_id,
      'updated_at', {POSTGRES_NOW})::text, TRUE);
  END IF;
  IF TG_OP <> 'DELETE' THEN
    new_row := to_jsonb(NEW);
    INSERT INTO outbox (event, priority) VALUES (jsonb_build_object('kind', 'upsert', 'product_id', NEW.product_id,
      'updated_at', CASE WHEN {untouched} THEN {POSTGRES_NOW} ELSE {own} END,
      'product', new_row - 'product_id' - 'updated_at')::text,
      coalesce(new_row ->> 'priority', 'false') IN ('true', '1'));
  END IF;
  RETURN NULL;
END $$"""
    return [
        function,
        f"CREATE TRIGGER {NAME} AFTER INSERT OR UPDATE OR DELETE ON products FOR EACH ROW EXECUTE FUNCTION {NAME}()",
    ]
