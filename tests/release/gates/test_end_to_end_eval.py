"""Which views of pictures are still asked, by what a version's rows show."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.release.gates.end_to_end_eval import _shown_pictures
from tests.serving.ranking.test_column_changes import features


@pytest.mark.parametrize(
    ("images", "further"),
    [
        (None, set()),
        (pa.array([["a.jpg", "b.jpg"]]), {"x"}),
        (pa.array([["b.jpg"]]), set()),
        (pa.array([None], pa.list_(pa.string())), set()),
        (pa.array([3]), set()),  # the shop's own column of a version from before
        (pa.array(["a.jpg"]), set()),
    ],
)
def test_a_product_shows_a_further_picture_where_its_row_lists_the_shown_one(images: pa.Array | None, further: set[str]) -> None:
    columns = {"image_uri": pa.array(["a.jpg"])} | ({} if images is None else {"images": images})
    assert _shown_pictures(features(**columns), np.array([True]), {"x", "y"}) == ({("x", "a.jpg")}, further)


def test_hidden_rows_and_products_that_nobody_asks_for_show_nothing() -> None:
    held = features(image_uri=pa.array(["a.jpg"]))
    assert _shown_pictures(held, np.array([False]), {"x"}) == (set(), set())
    assert _shown_pictures(held, np.array([True]), {"y"}) == (set(), set())
