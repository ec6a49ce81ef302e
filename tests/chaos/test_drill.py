"""What the drill takes for an answer that contradicts another one, and how long a fault lasts."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.drill import Fault, Happening, Seen, mixed_answers
from tests.load import Shots
from tests.running import until


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


def test_a_fault_that_lasts_as_long_as_the_first_attempt_ends_with_one_that_succeeds(tmp_path: Path) -> None:
    told: list[str] = []
    drill: Any = None
    fault = Fault(
        "store", "damage", "errs", lambda _: told.append("begun"), lambda _: told.append("ended"), "", lasts_s=None, step=""
    )
    happening = Happening(drill, fault, tmp_path / "log", Seen("", ""))
    happening.start()
    until(lambda: told == ["begun"])
    happening.end()
    assert told == ["begun", "ended"]
    assert len(happening.times) == 2


def test_a_fault_whose_step_is_never_done_does_not_begin(tmp_path: Path) -> None:
    fault = Fault("store", "damage", "errs", lambda _: None, lambda _: None, "", step="embed")
    drill: Any = None
    happening = Happening(drill, fault, tmp_path / "log", Seen("", ""))
    happening.start()
    happening.wait_out()
    happening.end()
    assert happening.times == []
