"""Change data capture by triggers: every change of `products` is written to the outbox in the same transaction.

The shop's own programs need not know of the outbox, and their writes never fail because of it: what a trigger cannot write is left
to the next rebuild, which reads the whole catalogue. An upsert carries the row as it is after the change, each value by the same
SQL expression as in a snapshot, and the row's own `updated_at`; where that was not set anew (or there is no such column) the time
of the change itself, so that the change counts.
"""

from collections.abc import Sequence

from serving.contract import addresses
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.changes.outbox_database import Postgres, Sqlite
from tasks.catalog.schema import ALIASES, REQUIRED
from tasks.catalog.sources import postgresql, sqlite
from tasks.catalog.sources.database import DatabaseColumn, quoted, sql_literal
from tasks.errors import CatalogError

NAME = "vitrine_capture"
OPERATIONS = ("insert", "update", "delete")
AT_ONCE = 40
"""Columns of one json_object in SQLite, which takes at most 100 arguments in older releases."""


def install_triggers(catalog_uri: str) -> dict[str, str]:
    """Installs the triggers for the current columns of `products`; gives why a column is not captured, by name.

    Raises CatalogError when there is no such table, or a required column is missing.
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
        columns = _columns(database)
        with database.transaction():
            for command in _removing(database) + _installing(database, [c for c in columns if not c.left_out]):
                database.execute(command)
        return {c.name: c.left_out for c in columns if c.left_out}
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
        shown = addresses.without_secrets(catalog_uri)
        raise CatalogError(f"{shown}: only a database can capture its changes; send them with: vitrine changes send")
    return Outbox.open(catalog_uri, existing=True)


def _columns(database: object) -> list[DatabaseColumn]:
    """The columns of products with the expressions of a snapshot."""
    if isinstance(database, Sqlite):
        found = sqlite.table_columns(database.fetch("SELECT name, upper(type) FROM pragma_table_info('products')"), None)
    else:
        assert isinstance(database, Postgres)
        found = postgresql.table_columns(database.fetch(postgresql.COLUMNS))
    named = {ALIASES.get(c.name, c.name) for c in found if not c.left_out}
    missing = [c for c in REQUIRED if c not in named]
    if missing:
        raise CatalogError(f"the table products has no column {missing[0]}; it has {', '.join(c.name for c in found)}")
    return found


def _removing(database: object) -> list[str]:
    if isinstance(database, Sqlite):
        return [f"DROP TRIGGER IF EXISTS {NAME}_{operation}" for operation in OPERATIONS]
    return [
        f"DROP TRIGGER IF EXISTS {NAME} ON products", f"DROP TRIGGER IF EXISTS {NAME}_truncate ON products",
        f"DROP FUNCTION IF EXISTS {NAME}()",
    ]  # fmt: skip


def _installing(database: object, columns: Sequence[DatabaseColumn]) -> list[str]:
    if isinstance(database, Sqlite):
        return _sqlite(columns)
    assert isinstance(database, Postgres)
    schema = database.fetch("SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                            "WHERE c.oid = to_regclass('products')")[0][0]  # fmt: skip
    outbox = database.fetch("SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                            "WHERE c.oid = to_regclass('outbox')")[0][0]  # fmt: skip
    return _postgres(columns, f"{quoted(schema)}.products", f"{quoted(outbox)}.outbox")


SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


def _sqlite_json(value: str) -> str:
    """A value that JSON can carry: json_object refuses blobs, and that would refuse the shop's own write."""
    return f"CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END"


def _sqlite(columns: Sequence[DatabaseColumn]) -> list[str]:
    names = {c.name: c for c in columns}
    told = [c for c in columns if c.name not in ("product_id", "updated_at")]
    pieces = [
        "json_object(" + ", ".join(f"{sql_literal(c.name)}, {_sqlite_json(c.of('NEW'))}" for c in told[n : n + AT_ONCE]) + ")"
        for n in range(0, len(told), AT_ONCE)
    ]
    row = pieces[0]
    for piece in pieces[1:]:
        row = f"json_patch({row}, {piece})"  # which drops missing values, as an event may
    new, old = (_sqlite_json(names["product_id"].of(which)) for which in ("NEW", "OLD"))
    priority = "coalesce(NEW.priority, 0) <> 0" if "priority" in names else "0"
    own = "replace(NEW.updated_at, ' ', 'T')"
    dated = "updated_at" in names
    insert = f"coalesce({own}, {SQLITE_NOW})" if dated else SQLITE_NOW
    # A time that was not touched is the time of an earlier state.
    update = f"CASE WHEN NEW.updated_at IS NOT OLD.updated_at THEN {insert} ELSE {SQLITE_NOW} END" if dated else SQLITE_NOW
    gone = f"json_object('kind', 'delete', 'product_id', {old}, 'updated_at', {SQLITE_NOW})"
    moved = f"INSERT INTO outbox (event, priority) SELECT {gone}, 1 WHERE OLD.product_id IS NOT NEW.product_id; "
    return [
        *(
            f"CREATE TRIGGER {NAME}_{operation} AFTER {operation} ON products BEGIN {moved if operation == 'update' else ''}"
            f"INSERT INTO outbox (event, priority) VALUES (json_object('kind', 'upsert', 'product_id', {new}, "
            f"'updated_at', {at}, 'product', {row}), {priority}); END"
            for operation, at in (("insert", insert), ("update", update))
        ),
        f"CREATE TRIGGER {NAME}_delete AFTER DELETE ON products BEGIN INSERT INTO outbox (event, priority) VALUES ({gone}, 1); END",
    ]


POSTGRES_NOW = """to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def _postgres(columns: Sequence[DatabaseColumn], products: str, outbox: str) -> list[str]:
    """One function for all triggers. It runs with the rights of who installed it, finds its tables whatever the session's search path
    is, and turns every error into a warning."""
    names = [c.name for c in columns]
    fields = ", ".join(f"{c.of('NEW')} AS {quoted(c.name)}" for c in columns)
    product_id = next(c for c in columns if c.name == "product_id")
    touched = "NEW.updated_at IS NOT NULL AND (TG_OP = 'INSERT' OR NEW.updated_at IS DISTINCT FROM OLD.updated_at)"
    at = f"CASE WHEN {touched} THEN new_row ->> 'updated_at' ELSE {POSTGRES_NOW} END" if "updated_at" in names else POSTGRES_NOW
    priority = "coalesce(new_row ->> 'priority', 'false') IN ('true', 't', '1')"

    def gone(value: str) -> str:
        return f"jsonb_build_object('kind', 'delete', 'product_id', {value}, 'updated_at', {POSTGRES_NOW})::text, TRUE"

    function = f"""
CREATE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $vitrine$
DECLARE new_row jsonb;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO {outbox} (event, priority) SELECT {gone(product_id.of())} FROM {products};
    RETURN NULL;
  END IF;
  IF TG_OP = 'DELETE' THEN
    INSERT INTO {outbox} (event, priority) VALUES ({gone(product_id.of("OLD"))});
    RETURN NULL;
  END IF;
  IF TG_OP = 'UPDATE' THEN
    IF OLD.product_id IS DISTINCT FROM NEW.product_id THEN
      INSERT INTO {outbox} (event, priority) VALUES ({gone(product_id.of("OLD"))});
    END IF;
  END IF;
  SELECT to_jsonb(r) INTO new_row FROM (SELECT {fields}) r;
  INSERT INTO {outbox} (event, priority) VALUES (jsonb_build_object('kind', 'upsert', 'product_id', new_row -> 'product_id',
    'updated_at', {at}, 'product', new_row - 'product_id' - 'updated_at')::text, {priority});
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'a change of products was not captured, the next rebuild will see it: %', SQLERRM;
  RETURN NULL;
END $vitrine$"""
    return [
        function,
        f"CREATE TRIGGER {NAME} AFTER INSERT OR UPDATE OR DELETE ON products FOR EACH ROW EXECUTE FUNCTION {NAME}()",
        f"CREATE TRIGGER {NAME}_truncate BEFORE TRUNCATE ON products FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()",
    ]
