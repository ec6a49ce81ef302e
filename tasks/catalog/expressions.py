"""The expressions of VITRINE_CATALOG_COLUMNS: columns, numbers, texts, + - * / and parentheses, computed over whole batches.

    price_cents / 100       ("net price" + fee) * 1.2       'EUR'

A column is a bare word, or any name in double quotes; a text stands in single quotes. Nothing is ever handed to an interpreter.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.columns import Column, convert, kind_of
from tasks.catalog.values import Kind
from tasks.errors import SettingsError

LONGEST = 1000
"""Characters of an expression."""
MOST_OPERATORS = 200
"""Each takes a level of Python's stack, of which others have used some."""
DEEPEST = 30
"""Parentheses and signs within one another."""
TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|(?P<column>[^\W\d]\w*)|"(?P<quoted>(?:[^"]|"")+)"|"""
    r"""'(?P<text>(?:[^']|'')*)'|(?P<sign>[-+*/()]))"""
)


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Text:
    value: str


@dataclass(frozen=True)
class Name:
    column: str


@dataclass(frozen=True)
class Operation:
    sign: Literal["+", "-", "*", "/"]
    left: "Expression"
    right: "Expression"


Expression = Number | Text | Name | Operation
OPERATIONS: dict[str, Callable[..., pa.Array]] = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,  # of doubles: by zero is infinite, which no column takes
}


class UnknownColumn(Exception):
    """An expression names a column that the table does not have."""


class NotComputable(Exception):
    """A column of a type that cannot be computed with; the message says so."""


def parse(text: str) -> Expression:
    """The expression of a text. Raises SettingsError saying what is wrong with it, without the name of a setting."""
    if len(text) > LONGEST:
        raise SettingsError(f"an expression of {len(text)} characters; at most {LONGEST} are accepted")
    tokens = list(_tokens(text))
    if (operators := sum(kind == "sign" and sign in OPERATIONS for kind, sign in tokens)) > MOST_OPERATORS:
        raise SettingsError(f"an expression of {operators} operators; at most {MOST_OPERATORS} are accepted")
    reader = _Reader(tokens, text)
    found = reader.sum(0)
    if reader.rest:
        raise SettingsError(f"{text!r}: an operator is expected before {reader.rest[0][1]!r}")
    return found


def columns_of(expression: Expression) -> list[str]:
    """The columns that an expression reads, in its order."""
    if isinstance(expression, Name):
        return [expression.column]
    if isinstance(expression, Operation):
        return columns_of(expression.left) + columns_of(expression.right)
    return []


def compute(expression: Expression, batch: pa.RecordBatch) -> Column:
    """Values (n,): the column itself for a name, double for arithmetic, null where an operand is missing or is no number.

    `problems` names the rows whose operands are no numbers. Raises UnknownColumn and NotComputable.
    """
    if isinstance(expression, Name):
        return Column(_column(expression.column, batch))
    if isinstance(expression, Text):
        return Column(pa.repeat(pa.scalar(expression.value), batch.num_rows))
    return _numbers(expression, batch)


def as_kind(name: str, kind: Kind, batch: pa.RecordBatch) -> Column:
    """A column of the batch as numbers or texts; problems are told with the column's name."""
    values = _column(name, batch)
    if kind_of(values.type) in (None, "names") or (kind == "number" and pa.types.is_boolean(values.type)):
        if pa.types.is_null(values.type):
            return Column(pa.nulls(len(values), pa.float64() if kind == "number" else pa.string()))
        what = "a number" if kind == "number" else "a text"
        raise NotComputable(f"the column {name} is of the type {values.type}; {what} is needed there")
    found = convert(values, kind)
    return Column(found.values, {row: f"{name}: {why}" for row, why in found.problems.items()})


def _numbers(expression: Expression, batch: pa.RecordBatch) -> Column:
    if isinstance(expression, Number):
        return Column(pa.array(np.full(batch.num_rows, expression.value)))
    if isinstance(expression, Name):
        return as_kind(expression.column, "number", batch)
    assert isinstance(expression, Operation)
    left, right = _numbers(expression.left, batch), _numbers(expression.right, batch)
    return Column(OPERATIONS[expression.sign](left.values, right.values), right.problems | left.problems)


def _column(name: str, batch: pa.RecordBatch) -> pa.Array:
    if name not in batch.schema.names:
        raise UnknownColumn(name)
    return batch.column(name)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        if not found:
            raise SettingsError(f"{text!r}: {text[at:].strip()[0]!r} cannot stand there; a name with other characters is quoted")
        kind = str(found.lastgroup)
        value = found[kind]
        yield kind, value.replace('""', '"') if kind == "quoted" else value.replace("''", "'") if kind == "text" else value
        at = found.end()


class _Reader:
    """Recursive descent: sum = product (+|- product)*, product = value (*|/ value)*, value = - value | ( sum ) | number | column."""

    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self.rest, self.text = tokens, text

    def sum(self, depth: int) -> Expression:
        return self._chain("+-", self._product, depth)

    def _product(self, depth: int) -> Expression:
        return self._chain("*/", self._value, depth)

    def _chain(self, signs: str, operand: Callable[[int], Expression], depth: int) -> Expression:
        found = operand(depth)
        while self.rest and self.rest[0][0] == "sign" and self.rest[0][1] in signs:
            sign = self.rest.pop(0)[1]
            found = Operation(sign, self._operand(found), self._operand(operand(depth)))  # type: ignore[arg-type]
        return found

    def _operand(self, expression: Expression) -> Expression:
        if isinstance(expression, Text):
            raise SettingsError(f"{self.text!r}: the text {expression.value!r} cannot be computed with")
        return expression

    def _value(self, depth: int) -> Expression:
        if depth > DEEPEST:
            raise SettingsError(f"{self.text!r}: more than {DEEPEST} parentheses within one another")
        if not self.rest:
            raise SettingsError(f"{self.text!r}: a column, a number or a text is expected at its end")
        kind, value = self.rest.pop(0)
        if kind == "number":
            return Number(float(value))
        if kind == "text":
            return Text(value)
        if kind in ("column", "quoted"):
            return Name(value)
        if value == "-":
            return Operation("-", Number(0.0), self._operand(self._value(depth + 1)))
        if value != "(":
            raise SettingsError(f"{self.text!r}: a column, a number or a text is expected before {value!r}")
        found = self.sum(depth + 1)
        if not self.rest or self.rest.pop(0)[1] != ")":
            raise SettingsError(f"{self.text!r}: a parenthesis is not closed")
        return found
