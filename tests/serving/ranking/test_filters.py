"""The filter language against a plain reading of its definition, one product at a time; and its refusals."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.contract.keys import product_keys
from serving.ranking.features import Features
from serving.ranking.filters import MAX_DEPTH, Filter, FilterError, filter_mask

ROWS = 40
PATHS = [["Home", "Mugs"], ["Home", "Lamps"], ["Shoes"], [], None]
START = datetime(2026, 1, 1, tzinfo=UTC)


def table() -> pa.Table:
    rng = np.random.default_rng(5)
    ids = [f"p{i}" for i in range(ROWS)]
    return pa.table({
        "key": product_keys(ids),
        "product_id": ids,
        "brand": [None if i % 9 == 0 else ["Norda", "Vela", "", "Kiso"][i % 4] for i in range(ROWS)],
        "category": pa.array([PATHS[i % 5] for i in range(ROWS)], pa.list_(pa.string())),
        "tags": pa.array([[f"t{j}" for j in rng.integers(0, 4, i % 3)] for i in range(ROWS)], pa.list_(pa.string())),
        "price": [None if i % 7 == 0 else float(i) for i in range(ROWS)],
        "weight": pa.array([None if i % 8 == 0 else i * 10 for i in range(ROWS)], pa.int32()),
        "cost": pa.array([Decimal(i) / 4 for i in range(ROWS)], pa.decimal128(10, 2)),
        "in_stock": [i % 3 != 0 for i in range(ROWS)],
        "popularity": rng.random(ROWS).astype(np.float32),
        "updated_at": pa.array([START + timedelta(days=i) for i in range(ROWS)], pa.timestamp("us", "UTC")),
        "vector": pa.array([[0.5]] * ROWS, pa.list_(pa.float32())),
    })  # fmt: skip


TABLE = table()
FEATURES = Features(TABLE)
ITEMS = TABLE.to_pylist()


def says(item: dict, wanted: dict) -> bool:
    """The language by its words."""
    for name, value in wanted.items():
        if name == "and":
            held = all(says(item, part) for part in value)
        elif name == "or":
            held = any(says(item, part) for part in value)
        elif name == "not":
            held = not says(item, value)
        else:
            asked = value if isinstance(value, dict) else {"in": value} if isinstance(value, list) else {"eq": value}
            held = all(holds(item[name], operator, operand) for operator, operand in asked.items())
        if not held:
            return False
    return True


def holds(mine: Any, operator: str, operand: Any) -> bool:
    known = mine is not None and mine not in ("", [])
    if operator == "exists":
        return known == operand
    if not known:
        return False
    if operator == "in":
        return any(holds(mine, "eq", one) for one in operand)
    if isinstance(mine, list):
        return operand in mine or operand == " > ".join(mine)
    if isinstance(mine, datetime):
        operand = datetime.fromisoformat(operand)
    return {"eq": mine == operand, "lt": mine < operand, "lte": mine <= operand, "gt": mine > operand, "gte": mine >= operand}[
        operator
    ]


CASES = [
    {},
    {"brand": "Norda"},
    {"brand": ["Norda", "Vela", "nobody"]},
    {"brand": "nobody"},
    {"brand": {"exists": False}},
    {"category": "Home"},
    {"category": ["Lamps", "Shoes"]},
    {"category": "Home > Mugs"},
    {"category": {"exists": True}},
    {"tags": "t2"},
    {"tags": {"in": ["t0", "t3"]}},
    {"price": {"gte": 10, "lt": 20.5}},
    {"price": 11},
    {"price": {"in": [11, 12.0, 14]}},
    {"price": {"exists": False}},
    {"weight": {"gt": 150}},
    {"weight": {"lte": 10**400}},
    {"weight": {"exists": True}, "in_stock": False},
    {"weight": {"in": [10, 10, 20.0, 30.5, 10**400, -(2**61)]}},
    {"price": {"in": list(range(3, 500, 2))}},
    {"cost": {"in": [0.25, 1, 2.125]}},
    {"weight": {"in": [*range(20, 320), 30.0, 330.5, 10**400, -(2**61)]}},
    {"cost": {"in": [n / 8 for n in range(300)]}},
    {"updated_at": [str(START + timedelta(hours=12 * n)) for n in range(-300, 40)]},
    {"cost": {"lte": 2.5}},
    {"in_stock": True},
    {"in_stock": [True, False]},
    {"updated_at": {"gte": "2026-01-05T00:00:00+00:00", "lt": "2026-01-20T00:00:00+00:00"}},
    {"product_id": ["p3", "p17", "nobody"]},
    {"not": {"brand": "Norda"}},
    {"not": {"price": {"lt": 20}}},
    {"or": [{"brand": "Vela"}, {"price": {"gt": 30}}, {"and": [{"in_stock": True}, {"category": "Home"}]}]},
    {"and": [{"not": {"or": [{"brand": "Vela"}, {"brand": "Norda"}]}}], "in_stock": True},
]


@pytest.mark.parametrize("wanted", CASES, ids=lambda wanted: str(wanted)[:80])
def test_a_filter_means_what_its_words_say(wanted: dict) -> None:
    expected = [says(item, wanted) for item in ITEMS]
    assert filter_mask(FEATURES, Filter(wanted)).tolist() == expected
    some = np.array([7, 3, 39, 3])
    assert filter_mask(FEATURES, Filter(wanted), some).tolist() == [expected[i] for i in some]


_LEAVES = st.sampled_from([c for c in CASES if c and not set(c) & {"and", "or", "not"}])
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)


def depth(wanted: dict) -> int:
    inner = [v if isinstance(v, list) else [v] for n, v in wanted.items() if n in ("and", "or", "not")]
    return 1 + max((depth(part) for parts in inner for part in parts), default=0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_TREES)
def test_any_combination_means_what_its_words_say(wanted: dict) -> None:
    assume(depth(wanted) <= MAX_DEPTH)
    assert filter_mask(FEATURES, Filter(wanted)).tolist() == [says(item, wanted) for item in ITEMS]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"colour": "red"}, "no column 'colour' to ask; it has key, product_id, brand"),
        ({"vector": 1}, "no column 'vector'"),
        ({"brand": {"lt": "N"}}, "brand holds text; it can be asked with eq, in and exists, not lt"),
        ({"brand": 3}, "brand holds text, and 3 is none"),
        ({"price": "cheap"}, "price is a number, and 'cheap' is none"),
        ({"price": True}, "price is a number, and True is none"),
        ({"in_stock": 1}, "in_stock is true or false, and 1 is neither"),
        ({"in_stock": {"gt": False}}, "in_stock is true or false; it can be asked with"),
        ({"updated_at": {"gt": "yesterday"}}, "updated_at is a time such as '2026-01-31T12:00:00Z', and 'yesterday' is none"),
        ({"or": [{"brand": "Vela"}, {"not": {"size": 3}}]}, "no column 'size'"),
    ],
)
def test_what_a_version_cannot_be_asked_names_the_column(wanted: dict, words: str) -> None:
    with pytest.raises(FilterError, match="filter: ") as caught:
        filter_mask(FEATURES, Filter(wanted))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"price": {"above": 3}}, "price: there is no operator 'above'; use one of eq, in"),
        ({"price": {}}, "price asks nothing"),
        ({"brand": []}, "brand: in takes a list of 1 to 1000 values"),
        ({"brand": None}, "brand: None is not a text"),
        ({"brand": [["a"]]}, "brand: ['a'] is not a text"),
        ({"price": {"exists": "yes"}}, "price: exists takes true or false"),
        ({"price": {"gt": float("inf")}}, "price: inf is not a text, a finite number"),
        ({"or": []}, "or takes a list of filters, at least one"),
        ({"or": [{"not": [1]}]}, "or.0.not is not an object"),
        ({"and": [{"brand": str(i)} for i in range(65)]}, "more than 64 conditions"),
        ({"brand": [str(i) for i in range(1001)]}, "1 to 1000 values"),
        ({"or": [{"price": list(range(600))}, {"brand": ["Vela"] * 401}]}, "lists have more than 1000 values together"),
    ],
)
def test_what_is_not_in_the_language_names_the_place(wanted: dict, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Filter(wanted)
    assert words in str(caught.value)


def test_a_list_of_many_values_takes_the_memory_of_a_few_rows_masks() -> None:
    rows = 20_000
    table = pa.concat_tables([TABLE] * (rows // ROWS))
    features = Features(table)
    wanted = Filter({"or": [{"price": {"in": list(range(900))}}] + [{"price": {"lt": n}} for n in range(60)]})
    mask, peaks = filter_mask(features, wanted), []
    for _ in range(3):  # what other threads of the tests allocate meanwhile counts as well
        tracemalloc.start()
        try:
            mask = filter_mask(features, wanted)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert mask.sum() == rows // ROWS * sum(item["price"] is not None for item in ITEMS)
    assert min(peaks) < 10 * rows + 200_000  # each value's and each condition's mask kept would be 960 times the rows


def test_products_by_name_are_all_rows_that_bear_it() -> None:
    """A product may be in a base and in later deltas."""
    features = Features(pa.concat_tables([TABLE, TABLE.slice(3, 2)]))
    wanted = Filter({"product_id": ["p3", "p3", "nobody", *(f"p{n}" for n in range(20, 40))]})
    assert filter_mask(features, wanted).nonzero()[0].tolist() == [3, *range(20, 40), 40]
    assert filter_mask(features, wanted, np.array([40, 4, 3])).tolist() == [True, False, True]


def test_a_filter_as_deep_as_the_stack_is_refused_and_not_followed() -> None:
    deep: dict = {"brand": "Vela"}
    for _ in range(200):
        deep = {"not": deep}
    with pytest.raises(ValidationError, match="deeper than 8 levels"):
        Filter(deep)


@pytest.mark.parametrize("part", [{}, {"and": [{}]}, {"not": {}}], ids=str)
def test_a_filter_of_thousands_of_objects_that_ask_nothing_is_refused(part: dict) -> None:
    assert Filter.model_validate({"or": [part] * 80}).tree()
    with pytest.raises(ValidationError, match="more than 256 objects"):
        Filter.model_validate({"or": [part] * 20_000})


def test_the_same_filter_has_one_canonical_form() -> None:
    one, other = Filter({"brand": "Vela", "price": {"lt": 3, "gt": 1}}), Filter({"price": {"gt": 1, "lt": 3}, "brand": "Vela"})
    assert one.canonical() == other.canonical()
    assert one.canonical() != Filter({"brand": "Vela", "price": {"lt": 3, "gte": 1}}).canonical()


@pytest.mark.parametrize("wanted", [c for c in CASES if "brand" in str(c)], ids=str)
def test_a_text_that_nearly_every_row_has_its_own_of_is_asked_uncoded(wanted: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ranking.features.MAX_CATEGORIES", 2)
    features = Features(TABLE)
    features.categorical_columns.clear()
    expected = [says(item, wanted) for item in ITEMS]
    assert filter_mask(features, Filter(wanted)).tolist() == expected
    some = np.array([7, 3, 39, 3])
    assert filter_mask(features, Filter(wanted), some).tolist() == [expected[i] for i in some]
    assert filter_mask(features, Filter(wanted), np.zeros(0, np.int64)).tolist() == []
    assert "brand" not in features.categorical_columns


def test_titles_are_not_coded_because_somebody_asks_for_one() -> None:
    rows = 60_000
    table = pa.concat_tables([TABLE] * (rows // ROWS)).append_column("title", pa.array([f"thing {n}" for n in range(rows)]))
    features = Features(table)
    assert filter_mask(features, Filter({"title": ["thing 7", "nothing", ""]})).nonzero()[0].tolist() == [7]
    assert filter_mask(features, Filter({"title": {"exists": True}, "brand": "Vela"})).sum() == rows // ROWS * 9
    assert "title" not in features.categorical_columns


@pytest.mark.parametrize(("names", "width"), [(254, 1), (255, 2), (70_000, 4)])
def test_codes_are_as_short_as_their_column_allows(names: int, width: int) -> None:
    brands = [f"brand {n}" for n in range(names)] + ["", None]
    table = pa.table(
        {c: TABLE[c].take(pa.array([0] * len(brands))) for c in TABLE.column_names if c != "brand"} | {"brand": brands}
    )
    features = Features(table)
    assert features.brand.codes.dtype.itemsize == width
    assert [features.brand.values[code] for code in features.brand.codes] == [b or "" for b in brands]
    assert filter_mask(features, Filter({"brand": f"brand {names - 1}"})).nonzero()[0].tolist() == [names - 1]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint8(), pa.uint64()], ids=str)
def test_whole_numbers_are_compared_exactly_whatever_their_size(kind: pa.DataType) -> None:
    limits = np.iinfo(kind.to_pandas_dtype())
    held = sorted(
        {n for n in (limits.min, limits.min + 1, 0, 1, 2**62, 2**62 + 1, limits.max - 1, limits.max) if n <= limits.max}
    )
    features = Features(TABLE.slice(0, len(held)).append_column("number", pa.array(held, kind)))
    for asked in (*held, limits.max + 1, limits.min - 1, 2**62 - 1, 2**63, 10**400, -(10**400)):
        for operator in ("eq", "lt", "lte", "gt", "gte"):
            expected = [holds(number, operator, asked) for number in held]
            assert filter_mask(features, Filter({"number": {operator: asked}})).tolist() == expected, (operator, asked)
        assert filter_mask(features, Filter({"number": [asked]})).tolist() == [number == asked for number in held]
