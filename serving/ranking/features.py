"""Feature columns over all rows of an index version, so that ranking 500 rows is a few array operations."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.palette import PALETTE
from serving.contract.segments import IMAGES, fixed_bytes, lists_pictures

Kind = Literal["text", "names", "number", "flag", "time"]
BETWEEN = "\x1f"
LEVELS = " > "
SAMPLE, MAX_CATEGORIES = 50_000, 25_000
"""A text column is dictionary-encoded if a sample of SAMPLE rows has at most MAX_CATEGORIES distinct texts: encoding a million titles
takes seconds and 250 MB."""


@dataclass(frozen=True)
class CategoricalColumn:
    """A dictionary-encoded column of texts or lists of names: `codes` (n,) unsigned into `values`; code 0 means missing.

    `values` holds each text, or each list joined by " > "; `parts` the names of each.
    """

    codes: np.ndarray
    values: list[str]
    parts: list[list[str]]

    @cached_property
    def codes_by_name(self) -> dict[str, list[int]]:
        """Codes by name: the text itself, the whole path, or any level of it."""
        found: dict[str, list[int]] = {}
        for code, (value, parts) in enumerate(zip(self.values, self.parts, strict=True)):
            for name in {value, *parts} - {""}:
                found.setdefault(name, []).append(code)
        return found


class TextColumn:
    """A text column read by row, as slices of its Arrow buffer. A missing text is ""."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        whole = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks()
        array = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
        _, offsets, data = array.buffers()
        self.offsets = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset) if len(array) else np.zeros(1, np.int64)
        self.data = memoryview(data) if data is not None else memoryview(b"")

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of rows (n,) int."""
        starts, ends, data = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), self.data
        return [str(data[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]


class Features:
    """Columns over all rows of a version; a row is addressed by its handle 0..n-1.

    `in_stock` bool, `popularity` float32, `price` float64 (NaN: unknown), `brand` and `category` categorical; `palette` (n, 13)
    uint8 where the version has it (zeros: unknown); other columns by name. `lenient`: a missing column counts as all null, as in
    a shard of a version whose other shards have it.
    """

    lenient = False

    def __init__(self, table: pa.Table) -> None:
        self.table = _with_known_values(table.combine_chunks())
        self.rows = len(table)
        self.key = _numpy(self.table["key"])
        self.by_key = np.argsort(self.key, kind="stable")
        self.in_stock = _numpy(self.table["in_stock"])
        self.popularity = _numpy(self.table["popularity"]).astype(np.float32)
        self.price = _numpy(pc.fill_null(self.table["price"].cast(pa.float64()), float("nan")))
        self.categorical_columns: dict[str, CategoricalColumn] = {}
        self.value_columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.text_columns: dict[str, TextColumn] = {}
        self.low_cardinality: dict[str, bool] = {}
        self.lock = threading.Lock()
        self.palette = fixed_bytes(self.table[PALETTE]) if PALETTE in self.table.column_names else None
        self.brand, self.category = self.categorical("brand"), self.categorical("category")

    def kind(self, name: str) -> Kind | None:
        """The kind of a column; None when it is missing or cannot be filtered."""
        if name not in self.table.column_names or (
            name == IMAGES and self.has_pictures
        ):  # addresses, as many as there are products
            return None
        kind = self.table.schema.field(name).type
        if _is_text(kind):
            return "text"
        if pa.types.is_list(kind) and _is_text(kind.value_type):
            return "names"
        if pa.types.is_boolean(kind):
            return "flag"
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return "time"
        return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) else None

    def filterable_columns(self) -> list[str]:
        """Names of the columns that filters and rules may use."""
        return [n for n in self.table.column_names if self.kind(n)]

    def categorical(self, name: str) -> CategoricalColumn:
        """A text or list column, dictionary-encoded. Cached; the first call takes about a second for ten million rows."""
        with self.lock:
            if name not in self.categorical_columns:
                self.categorical_columns[name] = _categorical(self.table[name])
            return self.categorical_columns[name]

    def is_low_cardinality(self, name: str) -> bool:
        """Whether a text column has few distinct values, estimated from a sample of rows. Others are filtered without encoding."""
        if name not in self.low_cardinality:
            sample = self.table[name].take(pa.array(np.arange(0, self.rows, max(1, self.rows // SAMPLE))))
            self.low_cardinality[name] = pc.count_distinct(sample).as_py() <= MAX_CATEGORIES
        return self.low_cardinality[name]

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) of a column of numbers, flags or times (in microseconds), and which are not null (n,) bool. Cached."""
        with self.lock:
            if name not in self.value_columns:
                self.value_columns[name] = _values(self.table[name])
            return self.value_columns[name]

    def rows_of(self, key: int) -> np.ndarray:
        """Handles of all rows with this key, oldest segment first: a key may be in a base and in later deltas."""
        low = np.searchsorted(self.key, key, sorter=self.by_key)
        high = np.searchsorted(self.key, key, side="right", sorter=self.by_key)
        return np.sort(self.by_key[low:high])

    def display_fields(self, handles: np.ndarray) -> list[dict[str, Any]]:
        """The fields an answer shows of rows: product_id, title, brand, category, price (None: unknown), currency, in_stock.

        Reads the columns' buffers directly: Arrow's `take` of twenty rows costs ten times as much.
        """
        ids, titles = self.texts("product_id").take(handles), self.texts("title").take(handles)
        categorical = self.brand, self.category, self.categorical("currency")
        brands, paths, currencies = categorical[0].values, categorical[1].parts, categorical[2].values
        codes = [column.codes[handles].tolist() for column in categorical]
        columns = ids, titles, *codes, self.price[handles].tolist(), self.in_stock[handles].tolist()
        return [
            {
                "product_id": product_id, "title": title, "brand": brands[brand], "category": paths[path] if path else [],
                "price": price if price == price else None, "currency": currencies[currency], "in_stock": stock,
            }
            for product_id, title, brand, path, currency, price, stock in zip(*columns, strict=True)
        ]  # fmt: skip

    def picture_uri(self, row: int, picture: int = 0) -> str | None:
        """Where a picture of a row's product lies: 0 the one that is shown of it, i the i-th further one; None where it has none such,
        "" for 0 where it has no picture at all."""
        if not picture:
            return str(self.take(np.array([row]), ["image_uri"])[0]["image_uri"])
        if not self.has_pictures:
            return None
        further: list[str] = self.take(np.array([row]), [IMAGES])[0][IMAGES] or []
        return further[picture - 1] if 0 < picture <= len(further) else None

    @property
    def has_pictures(self) -> bool:
        """Whether the version lists further pictures of products."""
        return lists_pictures(self.table.schema)

    def texts(self, name: str) -> TextColumn:
        """A text column for reading by row. Cached."""
        with self.lock:
            if name not in self.text_columns:
                self.text_columns[name] = TextColumn(self.table[name])
            return self.text_columns[name]

    def take(self, handles: np.ndarray, columns: list[str]) -> list[dict]:
        """The named columns of some rows, one dict a row."""
        return self.table.select(columns).take(pa.array(handles)).to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _with_known_values(table: pa.Table) -> pa.Table:
    """Unknown stock counts as in stock, shown and filtered alike; a popularity that is missing or not finite as 0.

    Snapshots say so since they read all values by one table of types; rows of earlier versions may not.
    """
    stock = pc.fill_null(table["in_stock"], True)
    known = pc.fill_null(table["popularity"], 0.0)
    finite = pc.if_else(pc.is_finite(known), known, pa.scalar(0.0, known.type))
    for name, column in (("in_stock", stock), ("popularity", finite)):
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us", getattr(kind, "tz", None))).cast(pa.int64())
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    known = _numpy(pc.is_valid(column))
    zero = pa.scalar(False) if pa.types.is_boolean(column.type) else pa.scalar(0).cast(column.type)
    values = _numpy(pc.fill_null(column, zero))
    return values, known & ~np.isnan(values) if values.dtype.kind == "f" else known


def _joined(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each list as one text; names that are missing in it are left out."""
    if any(chunk.flatten().null_count for chunk in lists.chunks):
        return pa.chunked_array(
            [pa.array([BETWEEN.join(n for n in names or [] if n) for names in lists.to_pylist()], pa.string())]
        )
    return pc.binary_join(pc.fill_null(lists, []) if lists.null_count else lists, BETWEEN)


def _categorical(column: pa.ChunkedArray) -> CategoricalColumn:
    """Dictionary-encodes a column. Empty and missing values are code 0, named ""."""
    lists = pa.types.is_list(column.type)
    text = _joined(column) if lists else column
    filled = pc.fill_null(text, "").cast(pa.string())
    encoded = pa.concat_arrays([pa.array([""]), *filled.chunks]).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    parts = [v.split(BETWEEN) if lists else [v] for v in values]
    short = np.min_scalar_type(len(values))  # the fewer bytes, the more of a column stays in the processor's caches
    return CategoricalColumn(encoded.indices.to_numpy()[1:].astype(short), [LEVELS.join(p) for p in parts], parts)
