"""Progress: a line in the log now and then, and a small file for the terminal."""

import json
import logging
from pathlib import Path

import pytest

from tasks import progress
from tasks.progress import Progress


def test_the_file_follows_and_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(progress, "FILE_EVERY_S", 0)
    with Progress("embed", 10, "pictures") as bar:
        assert json.loads((tmp_path / "embed.json").read_text())["done"] == 0
        bar.add(4, "2 in quarantine")
        record = json.loads((tmp_path / "embed.json").read_text())
        assert (record["done"], record["total"], record["unit"], record["note"]) == (4, 10, "pictures", "2 in quarantine")
        assert record["started"] <= record["updated"]
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_gone_after_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(ZeroDivisionError), Progress("embed", 10, "pictures"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_the_log_says_how_far_how_fast_and_how_long_still(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    with caplog.at_level(logging.INFO, "tasks.progress"), Progress("embed", 1000, "pictures") as bar:
        for _ in range(5):
            now[0] += 4
            bar.add(40)
        assert bar.line() == "embed: 200/1000 pictures, 10 pictures/s, 80 s left"
        now[0] += 480
        assert bar.line() == "embed: 200/1000 pictures, 0.4 pictures/s, 2000 s left"
    assert [r.getMessage() for r in caplog.records] == [
        "embed: 120/1000 pictures, 10 pictures/s, 88 s left",
        "embed: 200/1000 pictures, 0.4 pictures/s, 2000 s left",
    ]


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with Progress("embed", 0, "pictures") as bar:
        assert bar.line() == "embed: 0/0 pictures, 0 pictures/s"
    assert list(tmp_path.iterdir()) == []
