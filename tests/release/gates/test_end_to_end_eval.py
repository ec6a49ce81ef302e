"""Which queries are still asked, by what a version's rows show."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.release.gates.end_to_end_eval import Query, _shown_pictures, of_today
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


def test_photos_of_a_product_that_lost_its_picture_are_not_asked(tmp_path: Path) -> None:
    """p0 has a picture, p1 lost it in a change (its row of before is hidden), p2 got one."""
    rows = pa.table({"product_id": ["p0", "p1", "p1", "p2", "p2"]})
    live, depicted = np.array([1, 0, 1, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)
    version: Any = SimpleNamespace(
        features=SimpleNamespace(table=rows), live_titles=1, live=lambda: live, depicted=lambda: depicted
    )
    snapshot: Any = SimpleNamespace(uri=str(tmp_path), id="one")
    queries = [Query(f"photos/{n}.jpg", f"p{n}") for n in range(4)]
    assert of_today(queries, snapshot, version) == [queries[0], queries[2], queries[3]]
