"""The one table of value types: what a value of any source becomes, the same in snapshots, captured changes and sent events.

| kind | snapshot type | read from |
|---|---|---|
| text | string | texts; whole numbers, uuids, dates, times and exact decimals as they are written |
| number | double | numbers, decimals, texts with a point ("12.50", "1e3"); NaN means missing |
| whole | int64 | whole numbers and texts of them |
| flag | bool | true/false, numbers (0 is false), t, f, yes, no, y, n, 1, 0 as texts |
| time | timestamp[us, UTC] | times with or without a zone (without: UTC), dates, ISO 8601 texts as databases print them |
| names | list<string> | lists of texts or whole numbers (missing ones are left out), texts like "a > b" |
| uris | list<string> | lists of texts (missing ones are left out), texts that hold a JSON array of them |

An empty text, or one of MISSING, is a missing value of every kind but text. Whatever cannot be read raises ValueProblem with a
sentence; nothing is rounded to another value but times to microseconds and what lies beyond a double's digits.
"""

import datetime as dt
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pyarrow as pa

Kind = Literal["text", "number", "whole", "flag", "time", "names", "uris"]
UPDATED_AT = pa.timestamp("us", tz="UTC")
TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(), "number": pa.float64(), "whole": pa.int64(), "flag": pa.bool_(), "time": UPDATED_AT,
    "names": pa.list_(pa.string()), "uris": pa.list_(pa.string()),
}  # fmt: skip
LONGEST_TEXT = 1_000_000
"""Most characters of one text: every replica holds it in memory."""
QUOTED = 60
MISSING = ("", "nan", "na", "n/a", "#n/a", "null", "none")
"""Texts, in any case, that stand for a missing value of another kind than text."""
TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?)? ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)?", re.IGNORECASE
)
LEAST, MOST = -(2**63), 2**63 - 1


class ValueProblem(Exception):
    """A value that cannot be read as its kind; the message says what it is and what was expected."""


def text(value: Any) -> str | None:
    """A text; other values as they are written."""
    if value is None:
        return None
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int | Decimal | UUID):
        value = str(value)
    elif isinstance(value, float):
        value = repr(value)
    elif isinstance(value, dt.datetime):
        value = value.isoformat(" ")
    elif isinstance(value, dt.date | dt.time):
        value = value.isoformat()
    elif isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueProblem(f"{shown(value)} is not UTF-8") from None
    if not isinstance(value, str):
        raise ValueProblem(f"{shown(value)} is {named(value)}; a text is expected")
    if len(value) > LONGEST_TEXT:
        raise ValueProblem(f"a text of {len(value)} characters; at most {LONGEST_TEXT} are accepted")
    if "\0" in value:
        raise ValueProblem(f"{shown(value)} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueProblem(f"{shown(value)} holds half a character (a lone surrogate)") from None
    return value


def number(value: Any) -> float | None:
    """A finite number."""
    if isinstance(value, str | bytes):
        written = (text(value) or "").strip()
        if written.lower() in MISSING:
            return None
        if not NUMBER.fullmatch(written):
            raise ValueProblem(f"{shown(value)} is not a number")
        value = float(written)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueProblem(f"{shown(value)} is {named(value)}; a number is expected")
    try:
        found = float(value)
    except OverflowError:
        raise ValueProblem("a number of too many digits") from None
    if math.isnan(found):
        return None
    if math.isinf(found):
        raise ValueProblem("a number that is infinite, or has too many digits")
    return found


def whole(value: Any) -> int | None:
    """A whole number of 64 bits."""
    if isinstance(value, str | bytes):
        written = (text(value) or "").strip()
        if written.lower() in MISSING:
            return None
        if not re.fullmatch(r"[+-]?\d{1,19}", written):
            raise ValueProblem(f"{shown(value)} is not a whole number of 64 bits")
        value = int(written)
    if value is None:
        return None
    if isinstance(value, float | Decimal) and value == value and abs(float(value)) < MOST and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueProblem(f"{shown(value)} is not a whole number")
    found = int(value)
    if not LEAST <= found <= MOST:
        raise ValueProblem("a whole number of more than 64 bits")
    return found


def flag(value: Any) -> bool | None:
    """True or false; of numbers 0 is false and any other true."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | bytes):
        written = (text(value) or "").strip().lower()
        if written in MISSING:
            return None
        if written in TRUE or written in FALSE:
            return written in TRUE
        try:
            value = number(written)
        except ValueProblem:
            raise ValueProblem(f"{shown(value)} is not one of true, false, 1, 0") from None
    if not isinstance(value, int | float | Decimal):
        raise ValueProblem(f"{shown(value)} is {named(value)}; true or false is expected")
    found = number(value)
    return None if found is None else found != 0


def time(value: Any) -> dt.datetime | None:
    """A moment in UTC, to the microsecond; what has no zone is taken as UTC."""
    if isinstance(value, str | bytes):
        value = _written_time((text(value) or "").strip(), value)
    if value is None:
        return None
    if not isinstance(value, dt.datetime):
        if not isinstance(value, dt.date):
            raise ValueProblem(f"{shown(value)} is {named(value)}; a time like 2026-11-25T02:00:00Z is expected")
        value = dt.datetime(value.year, value.month, value.day)
    try:
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    except OverflowError:
        raise ValueProblem(f"{shown(str(value))} lies outside the years 1 to 9999") from None


def _written_time(written: str, value: Any) -> dt.datetime | None:
    if written.lower() in MISSING:
        return None
    found = TIME.fullmatch(written)
    try:
        if not found:  # what remains of ISO 8601, such as 20261125T020000Z
            return dt.datetime.fromisoformat(written)
        day, minute, second, fraction, zone = found.groups()
        zone = "" if zone is None else "+00:00" if zone.upper() in ("Z", "UTC", "GMT") else zone
        return dt.datetime.fromisoformat(f"{day}T{minute or '00:00'}{second or ':00'}.{(fraction or '')[:6]:0<6}{zone}")
    except ValueError:
        raise ValueProblem(f"{shown(value)} is not a time like 2026-11-25T02:00:00Z") from None


def names(value: Any) -> list[str]:
    """Texts in order, trimmed at ">" where they come as one text; missing and empty ones are left out."""
    if value is None:
        return []
    if isinstance(value, str | bytes):
        return [part.strip() for part in (text(value) or "").split(">") if part.strip()]
    if not isinstance(value, list | tuple) or any(isinstance(v, list | dict | tuple) for v in value):
        raise ValueProblem(f"{shown(value)} is {named(value)}; a list of texts, or a text like 'a > b', is expected")
    return [name for name in map(text, value) if name]


def uris(value: Any) -> list[str]:
    """Addresses in order, from a list or from a JSON array in a text; missing and empty ones are left out."""
    if isinstance(value, str | bytes):
        written = (text(value) or "").strip()
        if written.lower() in MISSING:
            return []
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            raise ValueProblem(f'{shown(written)} is not a JSON array of addresses like ["a.jpg", "b.jpg"]') from None
    if value is not None and not isinstance(value, list | tuple):
        raise ValueProblem(f"{shown(value)} is {named(value)}; a list of addresses is expected")
    return names(value)


READERS: dict[Kind, Callable[[Any], Any]] = {
    "text": text, "number": number, "whole": whole, "flag": flag, "time": time, "names": names,
    "uris": uris,
}  # fmt: skip


def read(value: Any, kind: Kind) -> Any:
    """A value of JSON or Python as this kind; None where it is missing. Raises ValueProblem."""
    return READERS[kind](value)


def shown(value: Any) -> str:
    """A value in a sentence: printable ASCII, cut."""
    written = ascii(value)
    return written if len(written) <= QUOTED else f"{written[: QUOTED - 1]}…"


def named(value: Any) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")
