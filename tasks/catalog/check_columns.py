"""What becomes of each column of a catalogue: taken as one of ours, as one of the shop's own, or left out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tasks.catalog.column_mapping import LEFT_OUT, ColumnMapping
from tasks.catalog.columns import kind_of
from tasks.catalog.product_pictures import IMAGES, PICTURE_ROWS
from tasks.catalog.schema import ALIASES, DEFAULTS, KINDS, PRODUCT_SCHEMA, ProductRows, readable
from tasks.catalog.values import Kind

WORDS: dict[Kind, str] = {
    "text": "text", "number": "number", "whole": "whole number", "flag": "true or false", "time": "time", "names": "list of names",
    "uris": "list of pictures",
}  # fmt: skip
OWN = "the shop's own: filters, collapse"
MISSING = "not in the catalogue"
NEEDED = f"{MISSING}, and every product needs one"


@dataclass(frozen=True)
class ColumnUse:
    """`column` of the catalogue ("" for none) of `type` is taken as `taken_as` ("": left out); `why` says how or why."""

    column: str
    type: str
    taken_as: str
    why: str = ""

    @property
    def missing(self) -> bool:
        """Whether the catalogue has no such column."""
        return self.why.startswith(MISSING)

    @property
    def needed(self) -> bool:
        """Whether it is missing, and no catalogue can be without it."""
        return self.why == NEEDED


def column_uses(
    schema: pa.Schema, mapping: ColumnMapping, left_out: Mapping[str, str], found: Sequence[ProductRows], pictured: bool = False
) -> list[ColumnUse]:
    """One for each column of the source, then one for each of ours that is computed, and for those that are missing.

    `pictured` says whether the source has a table of pictures.
    """
    renamed = mapping.names(schema.names)
    reasons = {n: why for rows in reversed(found) for n, why in rows.left_out.items()}
    uses = [_of_column(field, mapping, renamed, reasons) for field in schema]
    uses += [ColumnUse(name, "", "", why) for name, why in left_out.items()]
    computed = [name for name, _ in mapping.columns if name not in renamed.values()]
    uses += [ColumnUse(PICTURE_ROWS, "table", IMAGES, WORDS["uris"])] if pictured else []
    texts = dict(mapping.texts)
    uses += [ColumnUse("", "", name, f"{_kind(name)}, computed: {texts[name]}") for name in computed]
    taken = {ALIASES.get(use.taken_as, use.taken_as) for use in uses}
    return uses + list(_missing(taken, schema.names))


def _of_column(field: pa.Field, mapping: ColumnMapping, renamed: Mapping[str, str], reasons: Mapping[str, str]) -> ColumnUse:
    name, kind = field.name, str(field.type)
    if name in mapping.dropped:
        return ColumnUse(name, kind, "", LEFT_OUT)
    ours = renamed.get(name, name)
    given = {ALIASES.get(n, n) for n, _ in mapping.columns}
    if name not in renamed and ALIASES.get(name, name) in given:
        return ColumnUse(name, kind, "", f"VITRINE_CATALOG_COLUMNS gives another {ours}")
    if ours in reasons:
        return ColumnUse(name, kind, "", reasons[ours])
    full = ALIASES.get(ours, ours)
    if full in KINDS:
        return ColumnUse(name, kind, ours, WORDS[KINDS[full]])
    own = kind_of(field.type)
    if ours == "department":
        return ColumnUse(name, kind, ours, "text, put in front of category")
    return ColumnUse(name, kind, ours, f"{WORDS[own]}; {OWN}" if own else "")


def _kind(name: str) -> str:
    kind = KINDS.get(ALIASES.get(name, name))
    return WORDS[kind] if kind else OWN


def _missing(taken: Iterable[str], given: Sequence[str]) -> Iterable[ColumnUse]:
    taken = set(taken)
    for name in PRODUCT_SCHEMA.names:
        if name == "key" or name in taken:
            continue
        short = readable(name)
        if name == "image_uri" and IMAGES in taken:
            yield ColumnUse("", "", short, f"{MISSING}; every product: the first of its {IMAGES}")
            continue
        if name in DEFAULTS or name == "category":
            default = DEFAULTS.get(name)
            value = "none" if default in (None, "") else str(default).lower() if isinstance(default, bool) else str(default)
            value = "1970" if name == "updated_at" else value
            yield ColumnUse("", "", short, f"{MISSING}; every product: {value}")
        else:
            yield ColumnUse("", "", short, NEEDED)
