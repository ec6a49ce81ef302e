"""How far an embedding job is, also one that goes on after a kill."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.embed import chunk_progress
from tests.running import until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_progress, "EVERY_S", 0.002)
    monkeypatch.setattr(chunk_progress, "REPORT_S", 0.0)
    monkeypatch.setattr(chunk_progress, "ELSEWHERE_S", 0.0)


def told(folder: Path, stored: Callable[[], int], work: Callable[[list[tuple[int, int]]], None]) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    with chunk_progress.show_progress("embed", folder, 100, "pictures", stored, lambda *told: reports.append(told)):
        work(reports)
    return reports


def test_what_an_earlier_attempt_stored_counts_from_the_start_and_workers_add_to_it(tmp_path: Path) -> None:
    def work(reports: list[tuple[int, int]]) -> None:
        (tmp_path / "chunk-1").write_bytes(b"." * 30)
        until(lambda: bool(reports) and reports[-1] == (70, 100))

    reports = told(tmp_path, lambda: 40, work)
    assert reports[0] == (40, 100)
    assert reports[-1] == (100, 100)
    assert reports == sorted(reports), "it never goes back"


def test_of_workers_elsewhere_what_they_stored_is_counted_once(tmp_path: Path) -> None:
    stored = [40]

    def work(reports: list[tuple[int, int]]) -> None:
        stored[0] = 60
        until(lambda: bool(reports) and reports[-1] == (60, 100))

    assert told(tmp_path, lambda: stored[0], work)[0] == (40, 100)
