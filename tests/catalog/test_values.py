"""The one table of types: every value becomes the same one in a column and by itself, or is named."""

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.catalog.columns import convert, kind_of
from tasks.catalog.values import READERS, TYPES, Kind, ValueProblem, read

NOON = dt.datetime(2026, 11, 25, 12, 0, 0, 123456, dt.UTC)
ID = UUID("d269d055-a2db-45f7-9793-1ef2fe04c54e")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("text", "Größe 👟", "Größe 👟"),
        ("text", 7, "7"),
        ("text", ID, str(ID)),
        ("text", Decimal("12.50"), "12.50"),
        ("text", "", ""),
        ("number", "12.50", 12.5),
        ("number", " 1e3 ", 1000.0),
        ("number", "", None),
        ("number", float("nan"), None),
        ("number", Decimal("0.1"), 0.1),
        ("whole", "42", 42),
        ("whole", 42.0, 42),
        ("flag", 5, True),
        ("flag", "No", False),
        ("flag", "", None),
        ("names", "a > b >", ["a", "b"]),
        ("names", ["a", None, "", 7], ["a", "7"]),
        ("names", None, []),
        ("time", "", None),
    ],
)
def test_a_value_is_read_as_its_kind(kind: Kind, value: Any, expected: Any) -> None:
    assert read(value, kind) == expected


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-25T12:00:00.123456Z",
        "2026-11-25 12:00:00.123456+00",
        "2026-11-25 12:00:00.123456",
        "2026-11-25T13:00:00.123456+01:00",
        "2026-11-25 13:00:00.123456+0100",
        "2026-11-25T12:00:00.123456789Z",
        "2026-11-25 12:00:00,123456",
        "2026-11-25 12:00:00.123456 UTC",
        "20261125T120000.123456Z",
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(dt.timezone(dt.timedelta(hours=-7))),
    ],
)
def test_a_moment_is_the_same_however_it_is_written(written: Any) -> None:
    assert read(written, "time") == NOON
    column = convert(pa.array([written]), "time")
    assert column.values.to_pylist() == [NOON]


def test_what_has_no_time_of_day_is_its_midnight() -> None:
    midnight = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
    for written in ("2026-11-25", dt.date(2026, 11, 25), "2026-11-25T00:00Z"):
        assert read(written, "time") == midnight
        assert convert(pa.array([written]), "time").values.to_pylist() == [midnight]
    assert read("0001-01-01T00:00:00", "time") == dt.datetime(1, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("text", "Mug \ud83d", "half a character"),
        ("text", b"M\xfcller", "not UTF-8"),
        ("text", "a\0b", "NUL"),
        ("text", {"en": "x"}, "an object"),
        ("text", "x" * 1_000_001, "1000001 characters"),
        ("number", "cheap", "not a number"),
        ("number", "12,50", "not a number"),
        ("number", float("inf"), "infinite"),
        ("number", 10**400, "too many digits"),
        ("number", True, "true or false"),
        ("number", [1], "a list"),
        ("whole", 1.5, "not a whole number"),
        ("whole", 2**64, "64 bits"),
        ("flag", "perhaps", "not one of true, false"),
        ("flag", [], "a list"),
        ("time", "infinity", "not a time"),
        ("time", "0000-00-00 00:00:00", "not a time"),
        ("time", 1_764_000_000, "a number"),
        ("names", {"a": 1}, "an object"),
        ("names", [["a"]], "a list"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(kind: Kind, value: Any, says: str) -> None:
    with pytest.raises(ValueProblem, match=says) as problem:
        read(value, kind)
    str(problem.value).encode()
    assert len(str(problem.value)) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(JSON, st.sampled_from(sorted(READERS)))
def test_any_json_value_is_read_or_refused(value: Any, kind: Kind) -> None:
    try:
        found = read(value, kind)
    except ValueProblem:
        return
    assert pa.scalar(found, TYPES[kind]).type == TYPES[kind]
    assert found is None or read(found, kind) == found, "what was read is read again as it is"


WRITTEN = [
    "1", "0", "1.5", "-3", "", " 7 ", "true", "F", "no", "2026-11-25", "2026-11-25 12:00:00+02", "a > b", "nan", "+1", "1e3",
]  # fmt: skip
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)),
    (pa.string(), st.sampled_from(WRITTEN)),
    (pa.large_string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("s", "UTC"), st.datetimes(timezones=st.just(dt.UTC)).map(lambda t: t.replace(microsecond=0))),
    (pa.date32(), st.dates()),
    (pa.list_(pa.string()), st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=3)),
    (pa.decimal128(12, 2), st.decimals(-(10**6), 10**6, places=2)),
]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_a_whole_column_gives_what_each_value_gives(data: st.DataObject) -> None:
    arrow, values = data.draw(st.sampled_from(COLUMNS))
    kind: Kind = data.draw(st.sampled_from(sorted(READERS)))
    given_values = data.draw(st.lists(st.none() | values, max_size=6))
    found = convert(pa.array(given_values, arrow), kind)
    assert found.values.type == TYPES[kind]
    for row, value in enumerate(given_values):
        try:
            expected = read(value, kind)
        except ValueProblem:
            assert row in found.problems, (arrow, value)
        else:
            assert row not in found.problems, (arrow, value, found.problems)
            assert found.values[row].as_py() == expected, (arrow, value)


@pytest.mark.parametrize(
    ("arrow", "kind"),
    [
        (pa.string_view(), "text"), (pa.dictionary(pa.int8(), pa.string()), "text"), (pa.uuid(), "text"), (pa.time64("us"), "text"),
        (pa.int8(), "whole"), (pa.uint64(), "number"), (pa.float32(), "number"), (pa.decimal128(5, 2), "number"),
        (pa.bool_(), "flag"), (pa.date64(), "time"), (pa.timestamp("ns", "Europe/Berlin"), "time"),
        (pa.list_(pa.string(), 2), "names"), (pa.large_list(pa.large_string()), "names"), (pa.list_(pa.int32()), "names"),
        (pa.binary(), None), (pa.null(), None), (pa.struct({"a": pa.int8()}), None), (pa.map_(pa.string(), pa.string()), None),
        (pa.list_(pa.float32()), None), (pa.duration("s"), None),
    ],
)  # fmt: skip
def test_every_arrow_type_has_a_kind_or_is_left_out(arrow: pa.DataType, kind: Kind | None) -> None:
    assert kind_of(arrow) == kind


def test_a_decimal_is_the_nearest_double() -> None:
    prices = [Decimal(cents).scaleb(-2) for cents in range(1, 40_000, 7)] + [Decimal("20020.17")]
    found = convert(pa.array(prices, pa.decimal128(12, 2)), "number")
    assert found.values.to_pylist() == [float(price) for price in prices]
