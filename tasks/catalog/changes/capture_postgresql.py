"""PostgreSQL's triggers that capture changes of `products` and of its table of pictures.

Their functions run with the rights of who installed them, find their tables whatever the session's search path is, and turn every
error into a warning: the next rebuild sees what was missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.catalog.product_pictures import PICTURE_ROWS
from tasks.catalog.sources.database import DatabaseColumn, quoted, sql_literal
from tasks.catalog.sources.pictures import NO_PICTURES
from tasks.catalog.sources.postgresql import EXPRESSIONS

NAME = "vitrine_capture"
PICTURES = f"{NAME}_images"
NOW = """to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
OPTIONS = "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
LOCK_TIMEOUT = "500ms"
"""Shorter than PostgreSQL's deadlock_timeout (1 s): a wait for the product's row ends before a write of the shop's own could become the
victim of a deadlock with it, and long before a statement_timeout."""
NUMBERS = ("int2", "int4", "int8", "float4", "float8", "numeric")


@dataclass(frozen=True)
class Tables:
    """Qualified and quoted names; `pictures` ("" for none) has the columns `picture_columns` (name, type), `id_type` is the type of
    products.product_id."""

    products: str
    outbox: str
    pictures: str = ""
    picture_columns: tuple[tuple[str, str], ...] = ()
    id_type: str = "text"


def removing(pictures: bool) -> list[str]:
    """Statements that remove what `installing` made; `pictures` is whether there is a table product_images."""
    tables = [("products", NAME), ("products", f"{NAME}_truncate")]
    if pictures:
        tables += [(PICTURE_ROWS, f"{PICTURES}_{operation}") for operation in ("insert", "update", "delete", "truncate")]
    return [
        *(f"DROP TRIGGER IF EXISTS {trigger} ON {table}" for table, trigger in tables),
        *(f"DROP FUNCTION IF EXISTS {name}()" for name in (NAME, PICTURES)),
    ]


def installing(columns: Sequence[DatabaseColumn], tables: Tables) -> list[str]:
    """Statements for the columns of products and its table of pictures."""
    made = [
        _products(columns, tables),
        f"CREATE TRIGGER {NAME} AFTER INSERT OR UPDATE OR DELETE ON products FOR EACH ROW EXECUTE FUNCTION {NAME}()",
        f"CREATE TRIGGER {NAME}_truncate BEFORE TRUNCATE ON products FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()",
    ]
    if not tables.pictures:
        return made
    made.append(_images(columns, tables))
    for operation, rows in (
        ("INSERT", "NEW TABLE AS new_rows"), ("UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows"), ("DELETE", "OLD TABLE AS old_rows"),
    ):  # fmt: skip
        made.append(
            f"CREATE TRIGGER {PICTURES}_{operation.lower()} AFTER {operation} ON {tables.pictures} REFERENCING {rows} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {PICTURES}()"
        )
    truncate = f"CREATE TRIGGER {PICTURES}_truncate BEFORE TRUNCATE ON {tables.pictures}"
    return [*made, f"{truncate} FOR EACH STATEMENT EXECUTE FUNCTION {PICTURES}()"]


def _products(columns: Sequence[DatabaseColumn], tables: Tables) -> str:
    product_id = next(c for c in columns if c.name == "product_id")
    shown = [f"{_pictures(tables, 'NEW')} AS {PICTURE_ROWS}"] if tables.pictures else []
    fields = ", ".join([*(f"{c.of('NEW')} AS {quoted(c.name)}" for c in columns), *shown])
    gone = f"jsonb_build_object('kind', 'delete', 'product_id', {{}}, 'updated_at', {NOW})::text, TRUE"
    return f"""
CREATE FUNCTION {NAME}() {OPTIONS} AS $vitrine$
DECLARE new_row jsonb;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO {tables.outbox} (event, priority) SELECT {gone.format(product_id.of())} FROM {tables.products};
    RETURN NULL;
  END IF;
  IF TG_OP = 'DELETE' THEN
    INSERT INTO {tables.outbox} (event, priority) VALUES ({gone.format(product_id.of("OLD"))});
    RETURN NULL;
  END IF;
  IF TG_OP = 'UPDATE' THEN
    IF OLD.product_id IS DISTINCT FROM NEW.product_id THEN
      INSERT INTO {tables.outbox} (event, priority) VALUES ({gone.format(product_id.of("OLD"))});
    END IF;
  END IF;
  SELECT to_jsonb(r) INTO new_row FROM (SELECT {fields}) r;
  INSERT INTO {tables.outbox} (event, priority) VALUES ({_event(_at(columns, tables))});
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'a change of products was not captured, the next rebuild will see it: %', SQLERRM;
  RETURN NULL;
END $vitrine$"""


def _images(columns: Sequence[DatabaseColumn], tables: Tables) -> str:
    """One event for each product whose pictures a statement touched. The product's row is locked before it is read, so that of two
    transactions the later one tells what both have done; a row that another transaction holds for longer is read as it is."""

    def told(ids: str, uris: str) -> str:
        fields = ", ".join([*(f"{c.of('p')} AS {quoted(c.name)}" for c in columns), f"{uris} AS {PICTURE_ROWS}"])
        whose = f"FROM {tables.products} AS p WHERE p.product_id IN ({ids})"
        row = f"CROSS JOIN LATERAL (SELECT to_jsonb(r) AS new_row FROM (SELECT {fields}) AS r) AS found"
        return (
            f"BEGIN PERFORM 1 {whose} ORDER BY p.product_id FOR NO KEY UPDATE;\n"
            "    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN\n"
            "      RAISE WARNING 'a product is being written elsewhere: its pictures are captured as they are seen here';\n    END;\n    "
            f"INSERT INTO {tables.outbox} (event, priority) SELECT {_event(_ahead(columns))} "
            f"{whose.replace(' WHERE', f' {row} WHERE')};"
        )

    ids = f"SELECT product_id::{tables.id_type} FROM"
    current = _pictures(tables, "p")
    return f"""
CREATE FUNCTION {PICTURES}() {OPTIONS} SET lock_timeout = '{LOCK_TIMEOUT}' AS $vitrine$
BEGIN
  IF TG_OP = 'INSERT' THEN
    {told(f"{ids} new_rows", current)}
  ELSIF TG_OP = 'DELETE' THEN
    {told(f"{ids} old_rows", current)}
  ELSIF TG_OP = 'UPDATE' THEN
    {told(f"{ids} old_rows UNION {ids} new_rows", current)}
  ELSE
    {told(f"{ids} {tables.pictures}", "'[]'::jsonb")}
  END IF;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'a change of pictures was not captured, the next rebuild will see it: %', SQLERRM;
  RETURN NULL;
END $vitrine$"""


def _event(at: str) -> str:
    """Event and priority of the jsonb `new_row`."""
    priority = "coalesce(new_row ->> 'priority', 'false') IN ('true', 't', '1')"
    return (
        f"jsonb_build_object('kind', 'upsert', 'product_id', new_row -> 'product_id', 'updated_at', {at}, "
        f"'product', new_row - 'product_id' - 'updated_at')::text, {priority}"
    )


def _at(columns: Sequence[DatabaseColumn], tables: Tables) -> str:
    """The time of a product's event: the row's own where it was set anew. With pictures only where that is still to come, since
    theirs are the times of the changes."""
    dated = next((c for c in columns if c.name == "updated_at"), None)
    if dated is None:
        return NOW
    touched = "NEW.updated_at IS NOT NULL AND (TG_OP = 'INSERT' OR NEW.updated_at IS DISTINCT FROM OLD.updated_at)"
    if tables.pictures:
        touched += f" AND {_is_ahead(dated, 'NEW')}"
    return f"CASE WHEN {touched} THEN new_row ->> 'updated_at' ELSE {NOW} END"


def _ahead(columns: Sequence[DatabaseColumn]) -> str:
    """The time of a picture's event: now, or just after a time of the product that is still to come."""
    dated = next((c for c in columns if c.name == "updated_at"), None)
    if dated is None or dated.expression not in TIMES:
        return NOW
    just_after = NOW.replace("clock_timestamp()", f"({TIMES[dated.expression].format('p')} + interval '1 microsecond')")
    return f"CASE WHEN {_is_ahead(dated, 'p')} THEN {just_after} ELSE {NOW} END"


def _is_ahead(dated: DatabaseColumn, row: str) -> str:
    """Whether a row's updated_at is still to come; a text is never compared."""
    time = TIMES.get(dated.expression)
    return f"({time.format(row)} > clock_timestamp() AND isfinite({row}.updated_at))" if time else "TRUE"


TIMES = {
    EXPRESSIONS["timestamptz"]: "{0}.updated_at", EXPRESSIONS["timestamp"]: "({0}.updated_at AT TIME ZONE 'UTC')",
    EXPRESSIONS["date"]: "({0}.updated_at::timestamp AT TIME ZONE 'UTC')",
}  # fmt: skip


def _pictures(tables: Tables, row: str) -> str:
    """The addresses of a product's pictures as a JSON array, in the order of a snapshot."""
    kinds = dict(tables.picture_columns)
    image = f"i.{quoted('image' if 'image' in kinds else 'image_uri')}::text"
    order = f'{image} COLLATE "C"'
    if "position" in kinds:
        order = f"{'i.position::float8' if kinds['position'] in NUMBERS else 'i.position::text'} NULLS LAST, {order}"
    others = ", ".join(map(sql_literal, NO_PICTURES))
    shown = f" AND lower(btrim(coalesce(i.kind::text, ''))) NOT IN ({others})" if "kind" in kinds else ""
    where = f"i.product_id::{tables.id_type} = {row}.product_id AND {image} <> ''{shown}"
    return f"(SELECT coalesce(jsonb_agg({image} ORDER BY {order}), '[]'::jsonb) FROM {tables.pictures} AS i WHERE {where})"
