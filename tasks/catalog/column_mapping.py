"""VITRINE_CATALOG_COLUMNS: how the columns of a shop's own table become those of a catalogue."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.columns import Column
from tasks.catalog.expressions import (
    Expression,
    Name,
    NotComputable,
    Operation,
    Text,
    UnknownColumn,
    as_kind,
    columns_of,
    compute,
    parse,
)
from tasks.catalog.schema import ALIASES, KINDS, MAPPING_PROBLEM
from tasks.errors import CatalogError, SettingsError

SETTING = "VITRINE_CATALOG_COLUMNS"
HOLE = re.compile(r"\{([^{}]+)\}")
LEFT_OUT = f"{SETTING} leaves it out"


@dataclass(frozen=True)
class Template:
    """A text with columns in it: https://cdn.example/{image_key}.jpg. Missing where one of them is missing or empty."""

    text: str


@dataclass(frozen=True)
class Steps:
    """A list of names or addresses, one from each column or template, in this order; missing ones are left out."""

    columns: tuple[Expression | Template, ...]


@dataclass(frozen=True)
class Constant:
    """The same number or truth in every row."""

    value: float | bool


Source = Expression | Template | Steps | Constant


@dataclass(frozen=True)
class ColumnMapping:
    """`columns` gives each of our columns its source, as written in `texts`; `dropped` are columns that are left out.

    A column that only gets another name is there under that name alone; every other column stays as it is.
    """

    columns: tuple[tuple[str, Source], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.columns or self.dropped)

    @classmethod
    def parse(cls, setting: str) -> "ColumnMapping":
        """Reads TOML, an inline table of TOML, or the path of a .toml file. Raises SettingsError."""
        if not setting.strip():
            return cls()
        given = _toml(setting)
        for short, full in ALIASES.items():
            if short in given and full in given:
                raise SettingsError(f"{SETTING}: {short} is given twice, as {short} and as {full}")
        dropped = [name for name, value in given.items() if value == ""]
        columns = [(name, _source(name, value)) for name, value in given.items() if value != ""]
        texts = [(name, value if isinstance(value, str) else repr(value)) for name, value in given.items() if value != ""]
        return cls(tuple(columns), tuple(texts), tuple(dropped))

    def column_of(self, name: str, given: Iterable[str]) -> str:
        """The table's own column that is our column `name`, in a table with the columns `given`; "" where it is computed."""
        source = dict(self.columns).get(name)
        if source is None:
            return name
        written = dict(self.texts)[name]
        return written if written in set(given) else source.column if isinstance(source, Name) else ""

    def names(self, given: Iterable[str]) -> dict[str, str]:
        """Our name of each of the table's columns `given` that only gets another name."""
        given = list(given)
        return {own: name for name, _ in self.columns if (own := self.column_of(name, given)) in given}

    def apply(self, batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
        """The batch with our columns. Rows whose values cannot be computed say why in the column MAPPING_PROBLEM.

        Raises CatalogError for a column that is missing, or cannot be computed with.
        """
        if not self:
            return batch
        if twice := [n for n in batch.schema.names if batch.schema.names.count(n) > 1]:
            raise CatalogError(f"{where}: the column {twice[0]} occurs more than once; give each column its own name")
        renamed = self.names(batch.schema.names)
        mapped: dict[str, pa.Array] = {}
        problems: dict[int, str] = {}
        for name, source in self.columns:
            own = self.column_of(name, batch.schema.names)
            try:
                found = Column(batch.column(own)) if own in renamed else _values(source, batch)
            except UnknownColumn as missing:
                columns = ", ".join(batch.schema.names)
                raise CatalogError(f"{where}: {SETTING}: {name}: there is no column {missing}; found {columns}") from None
            except NotComputable as error:
                raise CatalogError(f"{where}: {SETTING}: {name}: {error}") from None
            mapped[name] = found.values
            for row, why in found.problems.items():
                problems.setdefault(row, f"{name}\t{why}")
        same = {name for pair in ALIASES.items() if set(pair) & set(mapped) for name in pair}
        replaced = {*mapped, *same, *renamed, *self.dropped}
        kept = {n: batch.column(n) for n in batch.schema.names if n not in replaced}
        told = pa.array([problems.get(row) for row in range(batch.num_rows)], pa.string()) if problems else None
        kept[MAPPING_PROBLEM] = pa.nulls(batch.num_rows, pa.string()) if told is None else told
        return pa.RecordBatch.from_pydict(mapped | kept)

    def over(self, batches: Iterable[pa.RecordBatch], where: str, left_out: dict[str, str]) -> Iterator[pa.RecordBatch]:
        """The batches with our columns; notes in `left_out` why columns are not read."""
        for batch in batches:
            left_out |= self.left_out(batch.schema.names)
            yield self.apply(batch, where)

    @property
    def numeric(self) -> set[str]:
        """The table's columns that are read as numbers."""
        found = {"price", "popularity"}
        for name, source in self.columns:
            if isinstance(source, Operation) or (name in found and isinstance(source, Name)):
                found |= set(columns_of(source))
        return found

    def left_out(self, given: Iterable[str]) -> dict[str, str]:
        """Why columns of a table are not read."""
        return {name: LEFT_OUT for name in given if name in self.dropped}


def _toml(setting: str) -> Mapping[str, Any]:
    text, place = setting.strip(), SETTING
    if text.endswith(".toml") and "\n" not in text:
        path = Path(text).expanduser()
        place = f"{SETTING}: {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{place}: the file cannot be read: {error}") from None
    try:
        found = tomllib.loads(f"columns = {text}")["columns"] if text.startswith("{") else tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f'{place}: not TOML such as product_id = "sku": {error}') from None
    return found


def _source(name: str, value: Any) -> Source:
    try:
        if isinstance(value, bool | int | float):
            return _constant(name, value)
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            kind = KINDS.get(name, "names")
            if kind not in ("names", "uris"):
                raise SettingsError("a list of columns makes a list of names, and one value is needed there")
            return Steps(tuple(_template(v) if kind == "uris" and "{" in v else _column(v) for v in value))
        if not isinstance(value, str):
            raise SettingsError('expected a text such as "price_cents / 100", a list of columns, a number or true or false')
        if "{" not in value and "}" not in value:
            return parse(value)
        return _template(value)
    except SettingsError as error:
        raise SettingsError(f"{SETTING}: {name}: {error}") from None


def _template(text: str) -> Template:
    if set("{}") & set(HOLE.sub("", text)):
        raise SettingsError(f"{text!r}: a brace is not closed; a column stands in braces: {{image_key}}")
    return Template(text)


def _constant(name: str, value: bool | int | float) -> Source:
    """The value in every row; one that stands for a text is the text as it was written: 978, not 978.0."""
    if KINDS.get(name) == "text" and not isinstance(value, bool):
        return Text(str(value))
    try:
        return Constant(value if isinstance(value, bool) else float(value))
    except OverflowError:
        raise SettingsError("a number of too many digits") from None


def _column(text: str) -> Expression:
    """A column of a list: any name, also one that is no expression."""
    try:
        found = parse(text)
    except SettingsError:
        return Name(text)
    return found if isinstance(found, Name) else Name(text)


def _values(source: Source, batch: pa.RecordBatch) -> Column:
    if isinstance(source, Constant):
        return Column(pa.repeat(pa.scalar(source.value), batch.num_rows))
    if isinstance(source, Template):
        return _text(source, batch)
    if isinstance(source, Steps):
        return _names(source, batch)
    return compute(source, batch)


def _text(template: Template, batch: pa.RecordBatch) -> Column:
    pieces: list[Any] = []
    problems: dict[int, str] = {}
    at = 0
    for hole in HOLE.finditer(template.text):
        found = as_kind(hole[1].strip(), "text", batch)
        problems = found.problems | problems
        pieces += [template.text[at : hole.start()], pc.if_else(pc.equal(found.values, ""), None, found.values)]
        at = hole.end()
    pieces.append(template.text[at:])
    return Column(pc.binary_join_element_wise(*(pa.scalar(p) if isinstance(p, str) else p for p in pieces), ""), problems)


def _names(steps: Steps, batch: pa.RecordBatch) -> Column:
    found = [
        column
        for step in steps.columns
        for column in (
            [_text(step, batch)] if isinstance(step, Template) else [as_kind(name, "text", batch) for name in columns_of(step)]
        )
    ]
    problems = {row: why for column in reversed(found) for row, why in column.problems.items()}
    rows = zip(*(column.values.to_pylist() for column in found), strict=True)
    return Column(pa.array([[name for name in row if name] for row in rows], pa.list_(pa.string())), problems)
