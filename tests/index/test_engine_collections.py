"""What the collections of all engines have in common: waiting for an engine that builds."""

from types import SimpleNamespace

import pytest

from tasks.errors import VitrineError
from tasks.index import engine_collections
from tasks.index.engine_collections import wait_while


def test_an_engine_has_finished_when_it_says_so_as_often_in_a_row_as_is_asked() -> None:
    told = iter(["", "3 rows left", "", "", "not asked any more"])
    wait_while(lambda: next(told), look_s=0.0, looks=2)
    assert list(told) == ["not asked any more"]


def test_an_engine_that_does_not_finish_in_time_is_told_with_what_it_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = [0]
    clock = SimpleNamespace(monotonic=lambda: sum(times), sleep=times.append)
    monkeypatch.setattr(engine_collections, "time", clock)
    told = iter(["5 rows left", "3 rows left"])
    with pytest.raises(VitrineError, match=r"^3 rows left after 10 s$"):
        wait_while(lambda: next(told), limit_s=10, look_s=11)
