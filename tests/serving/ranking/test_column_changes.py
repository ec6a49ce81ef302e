"""What is said of a column that is of another kind than in the version before."""

import pyarrow as pa
import pytest

from serving.ranking.column_changes import column_changes, with_change
from serving.ranking.features import Features
from serving.ranking.filters import Filter, FilterError, filter_mask


def features(**columns: pa.Array) -> Features:
    texts = {name: ["x"] for name in ("product_id", "title", "brand", "currency")}
    rest = {"key": [1], "category": [["a"]], "in_stock": [True], "popularity": [0.0], "price": [1.0]}
    return Features(pa.table(texts | rest | columns))


WIDE, SIZES = pa.array([38.5]), pa.array(["38 EU"])


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"size": WIDE}, {"size": SIZES}, "columns that filters meet changed: size was a number and is text now"),
        ({"size": WIDE}, {}, "columns that filters meet changed: size was a number and is not there now"),
        ({"size": WIDE}, {"size": pa.array([38])}, ""),
        ({}, {"size": SIZES}, ""),
    ],
)
def test_columns_of_another_kind_are_named(before: dict, after: dict, words: str) -> None:
    assert column_changes(features(**before), features(**after)) == words


@pytest.mark.parametrize(
    ("after", "other", "words"),
    [
        (
            {"size": SIZES},
            {"size": WIDE},
            "filter: size holds text; it can be asked with eq, in and exists, not gte; in index version 7 the column is text, "
            "in version 6 it was a number",
        ),
        ({}, {"size": WIDE}, "in index version 7 the column is not there, in version 6 it was a number"),
        ({"size": SIZES}, {"size": SIZES}, "not gte"),
        ({"size": SIZES}, {}, "not gte"),
    ],
)
def test_a_refused_filter_names_the_version_that_changed_its_column(after: dict, other: dict, words: str) -> None:
    with pytest.raises(FilterError) as caught:
        filter_mask(features(**after), Filter({"or": [{"in_stock": True}, {"size": {"gte": 38}}]}))
    explained = with_change(caught.value, "7", features(**after), "6", features(**other))
    assert str(explained).endswith(words)
    assert explained.status == 422


@pytest.mark.parametrize("images", [pa.array([3]), pa.array(['["b.jpg"]'])])
def test_a_column_images_of_a_version_from_before_is_the_shops_own(images: pa.Array) -> None:
    own = features(images=images, image_uri=pa.array(["a.jpg"]))
    assert (own.picture_uri(0), own.picture_uri(0, 1)) == ("a.jpg", None)
    assert own.kind("images") in ("number", "text")
    listed = features(images=pa.array([["b.jpg"]]), image_uri=pa.array(["a.jpg"]))
    assert (listed.picture_uri(0, 1), listed.kind("images")) == ("b.jpg", None)
