"""Arrow columns of any source as columns of a snapshot: which kind a column is, and its values with the rows that cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.values import FALSE, LONGEST_TEXT, TRUE, TYPES, UPDATED_AT, Kind, ValueProblem, read

REGULAR_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d:?\d\d)?$"


@dataclass(frozen=True)
class Column:
    """Values (n,) of the kind's type, null where missing or unusable; `problems` says why, by row."""

    values: pa.Array
    problems: dict[int, str] = field(default_factory=dict)


def kind_of(kind: pa.DataType) -> Kind | None:
    """The kind of a column of the shop's own; None for types that no filter can use, which are left out."""
    kind = _storage(kind)
    if pa.types.is_boolean(kind):
        return "flag"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "whole"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if _is_text(kind) or pa.types.is_time(kind) or _is_uuid(kind):
        return "text"
    if _is_list(kind):
        inner = _storage(kind.value_type)
        return "names" if _is_text(inner) or pa.types.is_integer(inner) else None
    return None


def convert(column: pa.ChunkedArray | pa.Array, kind: Kind) -> Column:
    """The column as this kind. Whole columns where Arrow gives the same values as `tasks.catalog.values`, else value by value."""
    array = _combined(column)
    try:
        quick = _quick(array, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        quick = None
    return Column(quick) if quick is not None else _by_value(array, kind)


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array, without dictionaries and extension types (uuids as texts)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # too large for one array of 32-bit offsets
            column = pa.concat_arrays([c.cast(pa.large_string()) for c in column.chunks])
    if _is_uuid(column.type):
        return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _quick(array: pa.Array, kind: Kind) -> pa.Array | None:
    """The whole column at once; None where a value needs a closer look."""
    if pa.types.is_null(array.type):
        return empty(len(array), kind)
    kinds = {
        "text": _text, "number": _number, "whole": _whole, "flag": _flag, "time": _time, "names": _names, "uris": _uris,
    }  # fmt: skip
    return kinds[kind](array)


def _text(array: pa.Array) -> pa.Array | None:
    if pa.types.is_integer(array.type):
        return array.cast(pa.string())
    if not _is_text(array.type):
        return None
    found = array.cast(pa.string())
    found.validate(full=True)  # ArrowInvalid for what is not UTF-8
    longest = pc.max(pc.binary_length(found)).as_py() or 0
    if longest > LONGEST_TEXT or pc.any(pc.match_substring(found, "\0")).as_py():
        return None
    return found


def _number(array: pa.Array) -> pa.Array | None:
    if pa.types.is_boolean(array.type):
        return None
    if _is_text(array.type):
        texts = _missing_if_empty(array)
        if texts is None or not pc.all(pc.match_substring_regex(texts, r"^-?\d+(\.\d+)?$")).as_py():
            return None
        array = texts
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.string())  # Arrow's own cast to double is not the nearest one (20020.17: 20020.170000000002)
    found = array.cast(pa.float64())
    if pc.any(pc.is_inf(found)).as_py():
        return None
    return pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)


def _whole(array: pa.Array) -> pa.Array | None:
    if pa.types.is_boolean(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        return None
    if not pa.types.is_integer(array.type):
        return None
    return array.cast(pa.int64())


def _flag(array: pa.Array) -> pa.Array | None:
    if pa.types.is_boolean(array.type):
        return array
    if pa.types.is_integer(array.type):
        return pc.not_equal(array, pa.scalar(0, array.type))
    texts = _missing_if_empty(array) if _is_text(array.type) else None
    if texts is None:
        return None
    lower = pc.utf8_lower(texts)
    true, false = (pc.is_in(lower, pa.array(words)) for words in (TRUE, FALSE))
    if not pc.all(pc.or_(pc.or_(true, false), pc.is_null(texts))).as_py():
        return None
    return pc.if_else(pc.is_null(texts), pa.scalar(None, pa.bool_()), true)


def _time(array: pa.Array) -> pa.Array | None:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(array.type):
        found = array.cast(pa.timestamp("us", array.type.tz), safe=array.type.unit != "ns").cast(UPDATED_AT)
        return found if _within_years(found) else None
    texts = _missing_if_empty(array) if _is_text(array.type) else None
    if texts is None or not pc.all(pc.match_substring_regex(texts, REGULAR_TIME)).as_py():
        return None
    texts = pc.if_else(pc.equal(pc.utf8_length(texts), 10), pc.binary_join_element_wise(texts, "00:00:00", " "), texts)
    zoned = pc.match_substring_regex(texts, r"(Z|[+-]\d\d:?\d\d)$")
    zoned = pc.and_(zoned, pc.greater(pc.utf8_length(texts), 16))
    return pc.if_else(zoned, texts, pc.binary_join_element_wise(texts, "Z", "")).cast(UPDATED_AT)


def _within_years(times: pa.Array) -> bool:
    """Whether all lie in the years 1 to 9999, as Python's do."""
    micros = times.cast(pa.int64())
    least, most = -62_135_596_800_000_000, 253_402_300_799_999_999
    return not pc.any(pc.or_(pc.less(micros, least), pc.greater(micros, most))).as_py()


def _names(array: pa.Array) -> pa.Array | None:
    if _is_text(array.type):
        texts = _text(array)
        return None if texts is None else _kept(pc.split_pattern(pc.fill_null(texts, ""), ">"), trimmed=True)
    if not _is_list(array.type):
        return None
    lists = array.cast(pa.list_(array.type.value_type)) if not pa.types.is_list(array.type) else array
    inner = _combined(lists.flatten())
    texts = _text(inner) if not pa.types.is_null(inner.type) else pa.nulls(len(inner), pa.string())
    if texts is None:
        return None
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return _kept(pa.ListArray.from_arrays(pa.array(offsets), texts), trimmed=False)


def _uris(array: pa.Array) -> pa.Array | None:
    return _names(array) if _is_list(array.type) else None


def _kept(lists: pa.ListArray, trimmed: bool) -> pa.ListArray:
    """Lists without missing and empty texts."""
    words = pc.utf8_trim_whitespace(lists.flatten()) if trimmed else lists.flatten()
    kept = pc.fill_null(pc.not_equal(words, ""), False)
    before = np.concatenate([[0], np.cumsum(kept.to_numpy(zero_copy_only=False))]).astype(np.int32)
    offsets = before[lists.offsets.to_numpy() - lists.offsets[0].as_py()]
    return pa.ListArray.from_arrays(pa.array(offsets), words.filter(kept))


def empty(rows: int, kind: Kind) -> pa.Array:
    """A column that says nothing: empty lists, or nulls."""
    return pa.array([[]] * rows, TYPES[kind]) if pa.types.is_list(TYPES[kind]) else pa.nulls(rows, TYPES[kind])


def _missing_if_empty(array: pa.Array) -> pa.Array | None:
    """Trimmed texts, null where empty; None where one is not UTF-8 or too long."""
    texts = _text(array)
    if texts is None:
        return None
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _by_value(array: pa.Array, kind: Kind) -> Column:
    found: list[Any] = []
    problems: dict[int, str] = {}
    for row, value in enumerate(_python_values(array)):
        try:
            if isinstance(value, ValueProblem):
                raise value
            found.append(read(value, kind))
        except ValueProblem as error:
            problems[row] = str(error)
            found.append([] if pa.types.is_list(TYPES[kind]) else None)
    return Column(pa.array(found, TYPES[kind]), problems)


def _python_values(array: pa.Array) -> Iterator[Any]:
    """The values as Python has them; bytes for a text that is not UTF-8, a ValueProblem for a value that Python cannot hold."""
    for scalar in array:
        try:
            yield scalar.as_py()
        except UnicodeDecodeError:
            yield scalar.as_buffer().to_pybytes() if _is_text(array.type) else ValueProblem("a text in it is not UTF-8")
        except (ValueError, OverflowError):
            yield ValueProblem(
                "it lies outside the years 1 to 9999" if pa.types.is_timestamp(array.type) else "it cannot be read"
            )


def _storage(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and getattr(kind, "extension_name", "") == "arrow.uuid"
