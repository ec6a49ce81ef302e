"""The expressions of VITRINE_CATALOG_COLUMNS: what they compute, and one sentence for each mistake."""

import pyarrow as pa
import pytest

from tasks.catalog.expressions import NotComputable, UnknownColumn, columns_of, compute, parse
from tasks.errors import SettingsError

BATCH = pa.RecordBatch.from_pydict({
    "cents": pa.array([1299, 5, None], pa.int64()), "net price": pa.array(["10", " 2.5 ", "abc"]), "fee": [0.0, 2.0, 4.0],
    "tags": [["a"], ["b"], ["c"]], "Größe": [1, 2, 3],
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cents / 100", [12.99, 0.05, None]),
        ('"net price" * 2 + fee', [20.0, 7.0, None]),
        ("2 + 3 * 4 - 6 / 2", [11.0] * 3),
        ("(2 + 3) * -(4 - fee)", [-20.0, -10.0, 0.0]),
        ("1e2 - .5", [99.5] * 3),
        ("fee / 0 * 0 + fee", None),
        ("Größe * 1", [1.0, 2.0, 3.0]),
        ("cents", [1299, 5, None]),
        ("'it''s'", ["it's"] * 3),
    ],
)
def test_arithmetic_is_that_of_doubles_over_whole_batches(text: str, expected: list | None) -> None:
    found = compute(parse(text), BATCH)
    if expected is not None:
        assert found.values.to_pylist() == expected


def test_a_row_whose_operand_is_no_number_says_which_and_why() -> None:
    assert compute(parse('"net price" * 2'), BATCH).problems == {2: "net price: 'abc' is not a number"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a column, a number or a text is expected at its end"),
        ("a +", "expected at its end"),
        ("a b", "an operator is expected before 'b'"),
        ("(a", "a parenthesis is not closed"),
        ("a)", "an operator is expected before '\\)'"),
        ("a * / b", "expected before '/'"),
        ("__import__('os')", "an operator is expected before"),
        ("a; b", "';' cannot stand there"),
        ("a.b", "'.' cannot stand there"),
        ("'a' + 1", "cannot be computed with"),
        ("(" * 40 + "a" + ")" * 40, "within one another"),
        ("-" * 40 + "a", "within one another"),
        ("a" * 1001, "at most 1000"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse(text)


def test_what_cannot_be_computed_is_said() -> None:
    assert columns_of(parse('cents / (fee + "net price")')) == ["cents", "fee", "net price"]
    with pytest.raises(UnknownColumn, match="nope"):
        compute(parse("nope * 2"), BATCH)
    with pytest.raises(NotComputable, match="the column tags is of the type list<item: string>; a number is needed there"):
        compute(parse("tags * 2"), BATCH)
