"""Columns of a snapshot, and the conversion of a source's rows; rows that cannot be used are set aside with their reasons."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.keys import product_keys
from serving.contract.palette import PALETTE
from tasks.catalog.columns import Column, convert, empty, kind_of
from tasks.catalog.photo_box import BOX_COLUMNS, box_of, with_box
from tasks.catalog.product_pictures import IMAGES, NOT_A_LIST, PICTURE_LISTS, TOO_LONG, fits, merge_pictures
from tasks.catalog.splits import photo_split
from tasks.catalog.values import UPDATED_AT, Kind
from tasks.errors import CatalogError

EPOCH = pa.scalar(0, pa.int64()).cast(pa.timestamp("us")).cast(UPDATED_AT)

PRODUCT_SCHEMA = pa.schema([
    ("product_id", pa.string()), ("key", pa.int64()), ("title", pa.string()), ("description", pa.string()),
    ("brand", pa.string()), ("category", pa.list_(pa.string())), ("price", pa.float64()), ("currency", pa.string()),
    ("in_stock", pa.bool_()), ("popularity", pa.float32()), ("priority", pa.bool_()), ("image_uri", pa.string()),
    ("updated_at", UPDATED_AT),
])  # fmt: skip
KINDS: dict[str, Kind] = {
    "product_id": "text", "title": "text", "description": "text", "brand": "text", "category": "names", "price": "number",
    "currency": "text", "in_stock": "flag", "popularity": "number", "priority": "flag", "image_uri": "text", "updated_at": "time",
    **PICTURE_LISTS,
}  # fmt: skip
FIXED_COLUMNS = (*PRODUCT_SCHEMA.names, IMAGES)
"""Columns of a snapshot that are not the shop's own; IMAGES (list<string>) is there where some product has further pictures."""
PHOTO_SCHEMA = pa.schema([
    ("photo_uri", pa.string()), ("product_id", pa.string()), ("split", pa.string()), ("taken_at", UPDATED_AT),
])  # fmt: skip

ALIASES = {"image": "image_uri", "photo": "photo_uri"}
REQUIRED = ("product_id", "title", "image_uri")
EMPTY = "is empty; every product needs one"
SPLITS = ("train", "val", "test")
DEFAULTS: dict[str, Any] = {
    "description": "", "brand": "", "price": None, "currency": "", "in_stock": True, "popularity": 0.0, "priority": False,
    "updated_at": EPOCH.as_py(),
}  # fmt: skip
"""What a missing value means; the same for a snapshot's row and an event's."""
OURS = ("key", PALETTE)
"""Columns of an index's tables that we compute: a catalogue's column of such a name is left out."""
LARGEST_FLOAT32 = 3.4e38
MAPPING_PROBLEM = "vitrine mapping problem"
"""Column of a source's batch: our column, a tab, and why it could not be computed in this row; null where it could."""


@dataclass(frozen=True)
class RowLimits:
    """Bounds of single values; a row beyond them is set aside."""

    longest_title: int = 2000
    longest_uri: int = 4000
    max_price: float = 1e7
    deepest_category: int = 12
    most_pictures: int = 16
    """Further pictures beyond so many in all are left out; the row stays."""
    text_only: bool = False
    """Whether a row that names no picture is a product, found by its title; its `image_uri` is then ""."""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that no product may be without."""
        return tuple(n for n in REQUIRED if not (self.text_only and n == "image_uri"))

    def problems(self, columns: dict[str, pa.Array]) -> Iterable[tuple[str, pa.Array, str]]:
        """(column, rows out of bounds (n,) bool, what is wrong); a missing value is out of no bounds."""
        title, uri, depth = (
            pc.utf8_length(columns["title"]), pc.utf8_length(columns["image_uri"]), pc.list_value_length(columns["category"]),
        )  # fmt: skip
        price, popularity = columns["price"], columns["popularity"]
        yield "title", pc.greater(title, self.longest_title), f"longer than {self.longest_title}: VITRINE_MAX_TITLE_LENGTH"
        yield "image_uri", pc.greater(uri, self.longest_uri), f"longer than {self.longest_uri}: VITRINE_MAX_URI_LENGTH"
        yield (
            "category",
            pc.greater(depth, self.deepest_category),
            f"of more than {self.deepest_category} steps: VITRINE_MAX_CATEGORY_DEPTH",
        )
        yield "price", pc.greater(price, self.max_price), f"above {self.max_price:g}: VITRINE_MAX_PRICE"
        yield "price", pc.less(price, 0.0), "below 0"
        yield "popularity", pc.less(popularity, 0.0), "below 0"
        yield "popularity", pc.greater(popularity, LARGEST_FLOAT32), f"above {LARGEST_FLOAT32:g}"


DEFAULT_LIMITS = RowLimits()


@dataclass(frozen=True)
class UnusableRow:
    """A row that is set aside. `row` counts from 0 in its batch; `column` has the source's own name."""

    row: int
    product_id: str
    column: str
    problem: str

    @property
    def sentence(self) -> str:
        """Product, column and reason."""
        return (
            f"product {self.product_id!r}: {self.column}: {self.problem}" if self.product_id else f"{self.column}: {self.problem}"
        )


@dataclass(frozen=True)
class ProductRows:
    """Usable rows (PRODUCT_SCHEMA, IMAGES where the source has such lists, then the shop's own columns), the unusable ones, and why a
    column was left out, by name. `pictures_left_out` (n,) int32 counts those of each usable row; None without lists."""

    table: pa.Table
    unusable: list[UnusableRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pictures_left_out: pa.Array | None = None


def read_products(batch: pa.RecordBatch, where: str, limits: RowLimits = DEFAULT_LIMITS) -> ProductRows:
    """Converts a batch of a source to snapshot rows. Raises CatalogError where a required column is missing or is there twice."""
    lists = [n for n in PICTURE_LISTS if n in batch.schema.names and fits(batch.schema.field(n).type)]
    table, own_name = _renamed(batch, where, tuple(n for n in REQUIRED if not (lists and n == "image_uri")))
    problems: dict[int, tuple[str, str]] = {}
    columns: dict[str, pa.Array] = {}

    def note(rows: Iterable[int], column: str, what: str) -> None:
        for row in rows:
            problems.setdefault(row, (own_name.get(column, column), what))

    def take(name: str, found: Column) -> None:
        for row, problem in found.problems.items():
            note([row], name, problem)
        columns[name] = found.values

    if MAPPING_PROBLEM in table.column_names:
        for row, problem in enumerate(
            table[MAPPING_PROBLEM].to_pylist() if table[MAPPING_PROBLEM].null_count < len(table) else ()
        ):
            if problem is not None:
                note([row], *problem.split("\t", 1))
        table = table.drop_columns([MAPPING_PROBLEM])
    for name, kind in KINDS.items():
        if name in lists or (name in table.column_names and name not in PICTURE_LISTS):
            take(name, convert(table[name], kind))
        elif name not in PICTURE_LISTS:
            columns[name] = empty(len(table), kind)
    pictures_left_out = None
    if lists:
        columns["image_uri"], columns[IMAGES], pictures_left_out = merge_pictures(
            columns["image_uri"], [columns.pop(n) for n in lists], limits.longest_uri, limits.most_pictures
        )
        named = pc.and_(pc.equal(pc.fill_null(columns["image_uri"], ""), ""), pc.greater(pictures_left_out, 0))
        note(_rows(named), "image_uri", TOO_LONG.format(limits.longest_uri))
    for name in limits.required:
        note(_rows(pc.or_kleene(pc.is_null(columns[name]), pc.equal(columns[name], ""))), name, EMPTY)
    if limits.text_only:
        columns["image_uri"] = pc.fill_null(columns["image_uri"], "")
    if "department" in table.column_names:
        columns["category"] = _below(convert(table["department"], "text").values, columns["category"])
    for name, beyond, what in limits.problems(columns):
        note(_rows(beyond), name, what)
    left_out = _take_own(table, take)
    ids = columns["product_id"]
    unusable = [UnusableRow(row, ids[row].as_py() or "", *problems[row]) for row in sorted(problems)]
    shaped = {"key": pa.array(product_keys(pc.fill_null(ids, "").to_pylist())), **columns}
    for name, default in DEFAULTS.items():
        kind = PRODUCT_SCHEMA.field(name).type
        cast = shaped[name].cast(kind, safe=kind != pa.float32())
        shaped[name] = cast if default is None else pc.fill_null(cast, pa.scalar(default, kind))
    own = sorted(set(shaped) - set(FIXED_COLUMNS))
    rows = pa.table(shaped).select([*PRODUCT_SCHEMA.names, *([IMAGES] if lists else []), *own])
    if unusable:
        usable = pa.array([row for row in range(len(rows)) if row not in problems], pa.int64())
        rows = rows.take(usable)
        pictures_left_out = None if pictures_left_out is None else pictures_left_out.take(usable)
    return ProductRows(rows, unusable, left_out, pictures_left_out)


def to_photos(batch: pa.RecordBatch, where: str) -> pa.Table:
    """Converts a batch to photo rows (PHOTO_SCHEMA). Raises CatalogError for a missing column, an unknown split, or a box that is none.

    A box (BOX_COLUMNS) becomes a part of the photo's address.

    A photo whose split is not said gets one by its name (tasks/catalog/splits.py); `taken_at` is null where it is not known.
    """
    table, _ = _renamed(batch, where, ("photo_uri", "product_id"))
    columns = {}
    for name, kind in (("photo_uri", "text"), ("product_id", "text"), ("split", "text"), ("taken_at", "time")):
        if name not in table.column_names:
            columns[name] = pa.nulls(len(table), PHOTO_SCHEMA.field(name).type)
            continue
        found = convert(table[name], kind)  # type: ignore[arg-type]
        for row, problem in found.problems.items():
            raise CatalogError(f"{where}: the column {name} of row {row + 1}: {problem}")
        columns[name] = found.values
    given = zip(columns["photo_uri"].to_pylist(), columns["split"].to_pylist(), strict=True)
    columns["split"] = pa.array([split or photo_split(uri or "") for uri, split in given], pa.string())
    columns["photo_uri"] = _with_boxes(columns["photo_uri"], table, where)
    table = pa.table(columns, schema=PHOTO_SCHEMA)
    strange = pc.invert(pc.is_in(table["split"], pa.array(SPLITS)))
    if pc.any(strange).as_py():
        unknown = table["split"][pc.index(strange, True).as_py()].as_py()
        raise CatalogError(f"{where}: split {unknown!r} is not one of {', '.join(SPLITS)}")
    return table


def _with_boxes(uris: pa.Array, table: pa.Table, where: str) -> pa.Array:
    named = [name for name in BOX_COLUMNS if name in table.column_names]
    if not named:
        return uris
    found = []
    for row, (uri, given) in enumerate(zip(uris.to_pylist(), table.select(named).to_pylist(), strict=True)):
        try:
            found.append(with_box(uri or "", box_of(given)))
        except ValueError as error:
            raise CatalogError(f"{where}: row {row + 1}, photo {uri!r}: {error}") from None
    return pa.array(found, pa.string())


def readable(name: str) -> str:
    """The short name of a snapshot column, as a catalogue has it."""
    return column_as_written((), name)


def column_as_written(columns: Iterable[str], name: str) -> str:
    """How a catalogue with these columns names the column `name`: so, or by its alias; by the alias where it has neither."""
    return name if name in columns else next((short for short, full in ALIASES.items() if full == name), name)


def _rows(mask: pa.Array) -> list[int]:
    return [row for row, wrong in enumerate(mask.to_pylist()) if wrong] if pc.any(mask).as_py() else []


def _take_own(table: pa.Table, take: Any) -> dict[str, str]:
    """Converts the shop's own columns; gives the names of those left out with the reason."""
    left_out: dict[str, str] = {}
    for name in table.column_names:
        if name in PRODUCT_SCHEMA.names and name != "key":
            continue
        if name in PICTURE_LISTS:
            left_out |= {} if fits(table.schema.field(name).type) else {name: NOT_A_LIST}
            continue
        kind = kind_of(table.schema.field(name).type)
        if name in OURS:
            left_out[name] = "Vitrine has a column of this name itself"
        elif kind is None:
            empty = table[name].null_count == len(table)
            left_out[name] = "it holds no value" if empty else f"no filter can use its type, {table.schema.field(name).type}"
        else:
            take(name, convert(table[name], kind))
    return left_out


def _renamed(batch: pa.RecordBatch, where: str, required: tuple[str, ...]) -> tuple[pa.Table, dict[str, str]]:
    """The batch with the snapshot's column names, and the source's own name of each renamed column."""
    given = batch.schema.names
    twice = next((n for n in given if given.count(n) > 1), None)
    if twice is not None:
        raise CatalogError(f"{where}: the column {twice} occurs more than once; give each column its own name")
    names = [ALIASES[n] if n in ALIASES and ALIASES[n] not in given else n for n in given]
    missing = [n for n in required if n not in names]
    if missing:
        shown = ", ".join(column_as_written(given, n) for n in missing)
        found = ", ".join(n for n in given if n != MAPPING_PROBLEM)
        raise CatalogError(f"{where}: the column {shown} is missing; found {found}")
    own = {new: old for new, old in zip(names, given, strict=True) if new != old}
    return pa.Table.from_arrays(batch.columns, names=names), own


def _below(departments: pa.Array, categories: pa.Array) -> pa.Array:
    """Category paths below their department, where that is not in them already."""
    pairs = zip(departments.to_pylist(), categories.to_pylist(), strict=True)
    return pa.array([[d, *p] if d and d not in p else p for d, p in pairs], pa.list_(pa.string()))
