"""The filter language: JSON conditions on the columns of an index version, evaluated exactly.

    {"brand": "Norda"}                                    a column equals a value
    {"brand": ["Norda", "Vela"]}                          … or one of several
    {"price": {"gte": 10, "lt": 50}}                      numbers, and times as ISO 8601 text
    {"category": "Shoes", "in_stock": true}               several columns: every one must hold
    {"or": [{"brand": "Vela"}, {"not": {"price": {"gt": 20}}}]}
    {"material": {"exists": true}}                        any feature column

A list column (`category`, tags) matches a value when any of its names, or its whole path "Home > Mugs", equals it. Where a
product's value is missing, only {"exists": false} holds of that column; `not` inverts any filter.

A filter has at most 64 conditions, 256 objects, 8 levels, and 1,000 values in all its lists together.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, RootModel, model_validator

from serving.contract.keys import product_keys
from serving.invalid_request import InvalidRequest
from serving.ranking.features import Features, Kind

LANGUAGE = 1
"""Version of the language; part of every cache key, so that a change of meaning invalidates cached answers."""
OPERATORS = ("eq", "in", "lt", "lte", "gt", "gte", "exists")
COMBINERS = ("and", "or", "not")
MAX_DEPTH, MAX_CONDITIONS, MAX_VALUES = 8, 64, 1000
MAX_OBJECTS = 4 * MAX_CONDITIONS
"""Most objects of a filter, empty ones among them, which are no conditions."""
MAX_COMPARISONS = 200
"""Most numbers of an `in` list compared one by one (0.2 ms each for a million rows); beyond, binary search is faster (50 to 80 ms)."""
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "lt": np.less, "lte": np.less_equal, "gt": np.greater, "gte": np.greater_equal,
}  # fmt: skip

Scalar = str | int | float | bool


class FilterError(InvalidRequest):
    """A filter that does not fit this index version; the message names the column."""

    reason = "query"

    def __init__(self, message: str, column: str = "") -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class Condition:
    """A leaf of the filter tree: an operator on one column."""

    column: str
    operator: str
    value: Any


@dataclass(frozen=True)
class BooleanNode:
    """An inner node of the filter tree: `and` or `or` of any number of parts, or `not` of one."""

    operator: str
    parts: tuple["Node", ...]


Node = Condition | BooleanNode

_SCALAR = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
_LIST = {"type": "array", "items": _SCALAR, "minItems": 1, "maxItems": MAX_VALUES}
_ORDERED = {"anyOf": [{"type": "number"}, {"type": "string"}]}
_SELF = {"$ref": "#/components/schemas/Filter"}
_PARTS = {"type": "array", "items": _SELF, "minItems": 1, "maxItems": MAX_CONDITIONS}
SCHEMA: dict[str, Any] = {
    "title": "Filter",
    "type": "object",
    "description": "Conditions by column; every one must hold. See docs/operate/serving.md.",
    "properties": {"and": _PARTS, "or": _PARTS, "not": _SELF},
    "additionalProperties": {
        "anyOf": [
            *_SCALAR["anyOf"],
            _LIST,
            {
                "type": "object",
                "properties": {"eq": _SCALAR, "in": _LIST, "exists": {"type": "boolean"}}
                | dict.fromkeys(("lt", "lte", "gt", "gte"), _ORDERED),
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    },
    "examples": [
        {"brand": ["Norda", "Vela"], "price": {"gte": 10, "lt": 50}, "in_stock": True},
        {"or": [{"category": "Shoes"}, {"not": {"brand": "Vela"}}]},
    ],
}


class Filter(RootModel[dict[str, Any]]):
    """A syntactically valid filter; whether its columns exist depends on the index version."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _well_formed(self) -> "Filter":
        self.tree()
        return self

    def tree(self) -> Node:
        """Parses the filter into a tree. Raises ValueError naming the invalid place."""
        return _Parser().object(self.root, "", 0)

    def canonical(self) -> str:
        """Canonical text of the filter, for cache keys."""
        return f"{LANGUAGE}:{json.dumps(self.root, sort_keys=True, separators=(',', ':'))}"


class _Parser:
    def __init__(self) -> None:
        self.objects = self.conditions = self.values = 0

    def object(self, found: Any, where: str, depth: int) -> Node:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise ValueError(f"the filter has more than {MAX_OBJECTS} objects")
        if not isinstance(found, dict):
            raise ValueError(f'{where or "the filter"} is not an object of conditions such as {{"brand": "Norda"}}')
        if depth > MAX_DEPTH:
            raise ValueError(f"{where} lies deeper than {MAX_DEPTH} levels")
        parts: list[Node] = []
        for name, value in found.items():
            here = f"{where}.{name}" if where else name
            if name not in COMBINERS:
                parts += self.column(name, value, here)
            elif name == "not":
                parts.append(BooleanNode("not", (self.object(value, here, depth + 1),)))
            elif isinstance(value, list) and value:
                parts.append(BooleanNode(name, tuple(self.object(v, f"{here}.{n}", depth + 1) for n, v in enumerate(value))))
            else:
                raise ValueError(f"{here} takes a list of filters, at least one")
        return parts[0] if len(parts) == 1 else BooleanNode("and", tuple(parts))

    def column(self, name: str, value: Any, here: str) -> list[Node]:
        if isinstance(value, list):
            value = {"in": value}
        elif not isinstance(value, dict):
            value = {"eq": value}
        if not value:
            raise ValueError(f"{here} asks nothing; use one of {', '.join(OPERATORS)}")
        return [self.condition(name, operator, operand, here) for operator, operand in value.items()]

    def condition(self, column: str, operator: str, value: Any, here: str) -> Condition:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            raise ValueError(f"the filter has more than {MAX_CONDITIONS} conditions")
        if operator not in OPERATORS:
            raise ValueError(f"{here}: there is no operator {operator!r}; use one of {', '.join(OPERATORS)}")
        if operator == "exists" and not isinstance(value, bool):
            raise ValueError(f"{here}: exists takes true or false")
        if operator == "in" and not (isinstance(value, list) and 0 < len(value) <= MAX_VALUES):
            raise ValueError(f"{here}: in takes a list of 1 to {MAX_VALUES} values")
        self.values += len(value) if operator == "in" else 0
        if self.values > MAX_VALUES:
            raise ValueError(f"the filter's lists have more than {MAX_VALUES} values together")
        for one in value if operator == "in" else [value]:
            if not isinstance(one, str | int | float) or (isinstance(one, float) and not math.isfinite(one)):
                raise ValueError(f"{here}: {one!r} is not a text, a finite number, true or false")
        return Condition(column, operator, tuple(value) if operator == "in" else value)


def filter_mask(features: Features, query_filter: Filter, rows: np.ndarray | None = None) -> np.ndarray:
    """Evaluates a filter: bool over all rows (n,), or over the handles `rows` (m,).

    Raises FilterError naming a column that is missing or of another type. A value that occurs nowhere matches no row.
    """
    return _mask(query_filter.tree(), features, rows)


def check_filter(features: Features, query_filter: Filter) -> None:
    """Checks a filter's columns and types without evaluating it. Raises FilterError as `filter_mask` does."""
    filter_mask(features, query_filter, np.zeros(0, np.int64))


def _mask(node: Node, features: Features, rows: np.ndarray | None) -> np.ndarray:
    if isinstance(node, Condition):
        try:
            return _evaluate(node, features, rows)
        except FilterError as error:
            error.column = node.column
            raise
    if not node.parts:
        return np.ones(features.rows if rows is None else len(rows), bool)
    mask = _mask(node.parts[0], features, rows)
    if node.operator == "not":
        return ~mask
    join = np.logical_and if node.operator == "and" else np.logical_or
    for part in node.parts[1:]:
        mask = join(mask, _mask(part, features, rows))
    return mask


def _evaluate(condition: Condition, features: Features, rows: np.ndarray | None) -> np.ndarray:
    kind = features.kind(condition.column)
    if kind is None and features.lenient:
        unknown = condition.operator == "exists" and not condition.value
        return np.full(features.rows if rows is None else len(rows), unknown)
    if kind is None:
        known = ", ".join(features.filterable_columns())
        raise FilterError(f"filter: this index version has no column {condition.column!r} to ask; it has {known}")
    if kind in ("text", "names"):
        return _evaluate_text(condition, kind, features, rows)
    values, known_ = features.values(condition.column)
    if rows is not None:
        values, known_ = values[rows], known_[rows]
    if condition.operator == "exists":
        return known_ == condition.value
    if condition.operator == "in":
        return _is_in(values, {_operand(condition, kind, v, values.dtype) for v in condition.value}) & known_
    if kind == "flag" and condition.operator != "eq":
        raise FilterError(f"filter: {condition.column} is true or false; it can be asked with eq, in and exists")
    return COMPARE[condition.operator](values, _operand(condition, kind, condition.value, values.dtype)) & known_


def _is_in(values: np.ndarray, choices: set[Any]) -> np.ndarray:
    """Whether each value is among the choices: (n,) bool, in the memory of a few columns."""
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        choices = {int(c) for c in choices if limits.min <= c <= limits.max and c == int(c)}
    if len(choices) > MAX_COMPARISONS:
        ascending = np.unique(np.array(list(choices), values.dtype))
        return ascending.take(np.searchsorted(ascending, values), mode="clip") == values
    among = np.zeros(len(values), bool)
    for choice in choices:
        among |= values == choice
    return among


def _evaluate_text(condition: Condition, kind: Kind, features: Features, rows: np.ndarray | None) -> np.ndarray:
    if condition.operator not in ("eq", "in", "exists"):
        raise FilterError(
            f"filter: {condition.column} holds text; it can be asked with eq, in and exists, not {condition.operator}"
        )
    wanted = condition.value if condition.operator == "in" else (condition.value,)
    if condition.operator != "exists" and (strange := [v for v in wanted if not isinstance(v, str)]):
        raise FilterError(f"filter: {condition.column} holds text, and {strange[0]!r} is none")
    if condition.column == "product_id" and condition.operator != "exists":  # millions of texts: their keys say the same
        keys = product_keys(set(wanted))
        if rows is not None:
            return np.isin(features.key[rows], keys)
        named = np.zeros(features.rows, bool)
        for key in keys:
            named[features.rows_of(key)] = True
        return named
    if kind == "text" and not features.is_low_cardinality(condition.column):
        texts = features.table[condition.column]
        texts = texts if rows is None else texts.take(pa.array(rows))
        if condition.operator == "exists":
            return pc.fill_null(pc.not_equal(texts, ""), False).to_numpy() == condition.value
        return pc.is_in(texts, pa.array(set(wanted) - {""}, texts.type)).to_numpy()
    categorical = features.categorical(condition.column)
    through = np.zeros(len(categorical.values), bool)
    if condition.operator == "exists":
        through[:] = condition.value
        through[0] = not condition.value
    else:
        for name in set(wanted):
            through[categorical.codes_by_name.get(name, [])] = True
    return through[categorical.codes if rows is None else categorical.codes[rows]]


def _operand(condition: Condition, kind: str, value: Scalar, dtype: np.dtype) -> Any:
    """A condition's value as its column's type: bool, microseconds, float, or a whole number of any size. Raises FilterError."""
    if kind == "flag":
        if not isinstance(value, bool):
            raise FilterError(f"filter: {condition.column} is true or false, and {value!r} is neither")
        return value
    if kind == "time":
        try:
            moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        except ValueError:
            example = "2026-01-31T12:00:00Z"
            raise FilterError(f"filter: {condition.column} is a time such as {example!r}, and {value!r} is none") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1e6)
    if isinstance(value, bool | str):
        raise FilterError(f"filter: {condition.column} is a number, and {value!r} is none")
    if dtype.kind != "f":
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
