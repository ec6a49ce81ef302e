"""Columns of a snapshot, and the conversion of a source's columns."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.keys import product_keys
from tasks.catalog.splits import photo_split
from tasks.errors import CatalogError

UPDATED_AT = pa.timestamp("us", tz="UTC")
EPOCH = pa.scalar(0, pa.int64()).cast(pa.timestamp("us")).cast(UPDATED_AT)

PRODUCT_SCHEMA = pa.schema([
    ("product_id", pa.string()), ("key", pa.int64()), ("title", pa.string()), ("description", pa.string()),
    ("brand", pa.string()), ("category", pa.list_(pa.string())), ("price", pa.float64()), ("currency", pa.string()),
    ("in_stock", pa.bool_()), ("popularity", pa.float32()), ("priority", pa.bool_()), ("image_uri", pa.string()),
    ("updated_at", UPDATED_AT),
])  # fmt: skip
PHOTO_SCHEMA = pa.schema([
    ("photo_uri", pa.string()), ("product_id", pa.string()), ("split", pa.string()), ("taken_at", UPDATED_AT),
])  # fmt: skip

ALIASES = {"image": "image_uri", "photo": "photo_uri"}
REQUIRED = ("product_id", "title", "image_uri")
SPLITS = ("train", "val", "test")
DEFAULTS = {
    "description": "", "brand": "", "price": None, "currency": "", "in_stock": True, "popularity": 0.0, "priority": False,
}  # fmt: skip


def to_products(batch: pa.RecordBatch, where: str) -> pa.Table:
    """Converts a batch to snapshot rows (PRODUCT_SCHEMA, then extra columns unchanged). Raises CatalogError."""
    table = _renamed(batch, where, REQUIRED)
    for name in REQUIRED:
        empty = pc.or_kleene(pc.is_null(table[name]), pc.equal(table[name].cast(pa.string()), ""))
        if pc.any(empty).as_py():
            row = pc.index(empty, True).as_py()
            known = table["product_id"][row].as_py()
            shown, picture = column_as_written(batch.schema.names, name), column_as_written(batch.schema.names, "image_uri")
            raise CatalogError(f"{where}: product {known!r} has no {shown}; every product needs product_id, title and {picture}")
    table = _with_category(table)
    columns = {"product_id": table["product_id"].cast(pa.string())}
    columns["key"] = pa.array(product_keys(columns["product_id"].to_pylist()))
    for field in PRODUCT_SCHEMA:
        if field.name in columns:
            continue
        if field.name in table.column_names:
            columns[field.name] = _cast(table[field.name], field, where, column_as_written(batch.schema.names, field.name))
        elif field.name == "updated_at":
            columns[field.name] = pa.repeat(EPOCH, len(table))
        else:
            columns[field.name] = pa.repeat(pa.scalar(DEFAULTS[field.name], field.type), len(table))
    carried = {n: table[n] for n in table.column_names if n not in columns}
    return pa.table(columns | carried).select([*PRODUCT_SCHEMA.names, *sorted(carried)])


def to_photos(batch: pa.RecordBatch, where: str) -> pa.Table:
    """Converts a batch to photo rows (PHOTO_SCHEMA). Raises CatalogError for an unknown column or split.

    A photo whose split is not said gets one by its name (tasks/catalog/splits.py); `taken_at` is null where it is not known.
    """
    table = _renamed(batch, where, ("photo_uri", "product_id"))
    uris = table["photo_uri"].cast(pa.string())
    given = table["split"].to_pylist() if "split" in table.column_names else [None] * len(table)
    splits = pa.array([split or photo_split(uri) for uri, split in zip(uris.to_pylist(), given, strict=True)], pa.string())
    columns = {"photo_uri": uris, "product_id": table["product_id"].cast(pa.string()), "split": splits}
    table = pa.table(columns | {"taken_at": _taken_at(table, where)}, schema=PHOTO_SCHEMA)
    strange = pc.invert(pc.is_in(table["split"], pa.array(SPLITS)))
    if pc.any(strange).as_py():
        found = table["split"][pc.index(strange, True).as_py()].as_py()
        raise CatalogError(f"{where}: split {found!r} is not one of {', '.join(SPLITS)}")
    return table


def _taken_at(table: pa.Table, where: str) -> pa.Array | pa.ChunkedArray:
    if "taken_at" not in table.column_names:
        return pa.nulls(len(table), UPDATED_AT)
    column = table["taken_at"]
    if pa.types.is_string(column.type):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return _cast(column, PHOTO_SCHEMA.field("taken_at"), where, "taken_at")


def _renamed(batch: pa.RecordBatch, where: str, required: tuple[str, ...]) -> pa.Table:
    table = pa.Table.from_batches([batch])
    table = table.rename_columns(
        [ALIASES.get(n, n) if ALIASES.get(n, n) not in table.column_names else n for n in table.column_names]
    )
    missing = [n for n in required if n not in table.column_names]
    if missing:
        shown = ", ".join(column_as_written(batch.schema.names, n) for n in missing)
        raise CatalogError(f"{where}: the column {shown} is missing; found {', '.join(batch.schema.names)}")
    return table


def column_as_written(columns: Iterable[str], name: str) -> str:
    """How a catalogue with these columns names the column `name`: so, or by its alias; by the alias where it has neither."""
    return name if name in columns else next((short for short, full in ALIASES.items() if full == name), name)


def _with_category(table: pa.Table) -> pa.Table:
    """`category` as a list from general to specific: text is split at ">", and a `department` goes first."""
    if "category" not in table.column_names:
        empty = pa.array([[]] * len(table), pa.list_(pa.string()))
        return table.append_column("category", empty)
    column = table["category"]
    if pa.types.is_list(column.type):
        return table
    parts = _split(pc.fill_null(column.cast(pa.string()), ""))
    if "department" in table.column_names:
        pairs = zip(table["department"].to_pylist(), parts.to_pylist(), strict=True)
        parts = pa.array([[d, *p] if d and d not in p else p for d, p in pairs], pa.list_(pa.string()))
    place = table.column_names.index("category")
    return table.set_column(place, "category", parts)


def _split(paths: pa.ChunkedArray) -> pa.ListArray:
    """Splits "a > b" into ["a", "b"], trimmed, without empty steps."""
    steps = pc.split_pattern(paths.combine_chunks(), ">")
    words = pc.utf8_trim_whitespace(steps.flatten())
    kept = pc.not_equal(words, "")
    before = np.concatenate([[0], np.cumsum(kept.to_numpy(zero_copy_only=False))]).astype(np.int32)
    offsets = before[steps.offsets.to_numpy() - steps.offsets[0].as_py()]
    return pa.ListArray.from_arrays(pa.array(offsets), words.filter(kept))


def _whole_day(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Completes a date without a time to the start of its day."""
    return pc.if_else(pc.equal(pc.utf8_length(text), 10), pc.binary_join_element_wise(text, "00:00:00", " "), text)


def _cast(column: pa.ChunkedArray, field: pa.Field, where: str, shown: str) -> pa.ChunkedArray:
    try:
        if field.type == UPDATED_AT and pa.types.is_string(column.type):
            return _times(column)
        if field.type == UPDATED_AT and pa.types.is_timestamp(column.type) and column.type.tz is None:
            return column.cast(pa.timestamp("us")).cast(UPDATED_AT)
        if pa.types.is_boolean(field.type) and not pa.types.is_boolean(column.type):
            return pc.not_equal(column.cast(pa.int64()), 0)
        cast = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CatalogError(f"{where}: the column {shown} does not read as {field.type}: {error}") from None
    default = DEFAULTS.get(field.name)
    return cast if default is None else pc.fill_null(cast, pa.scalar(default, field.type))


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parses text as times (ISO 8601, to the microsecond; UTC without a zone). Raises ArrowInvalid."""
    column = _whole_day(column)
    zoned = pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")
    with_zone = pc.if_else(zoned, column, pc.binary_join_element_wise(column, "Z", ""))
    return with_zone.cast(UPDATED_AT)
