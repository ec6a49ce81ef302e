"""What the drill takes for an answer that contradicts another one."""

import numpy as np

from tests.chaos.drill import mixed_answers
from tests.load import Shots


def shots(*rows: tuple[int, int, str, str, int]) -> Shots:
    """Rows of status, request, version, digest of the results, and shards that answered."""
    status, request, version, digest, shards = (np.array(column) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows))
    return Shots(nothing, nothing, status, request, version, version, digest, nothing, shards, 1.0, 0.0)


def test_one_answer_for_each_request_and_version_but_for_those_of_fewer_shards() -> None:
    same = (200, 0, "1", "a", 2), (200, 0, "1", "a", 2), (200, 0, "2", "b", 2), (200, 1, "1", "b", 2)
    assert mixed_answers(shots(*same)) == 0
    assert mixed_answers(shots(*same, (200, 0, "1", "c", 1), (503, 0, "1", "d", 2))) == 0
    assert mixed_answers(shots(*same, (200, 0, "1", "c", 2))) == 1
