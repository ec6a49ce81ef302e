"""A worker's own disk is bounded: abandoned scratch goes, then what of its caches was used longest ago."""

import os
import time
from pathlib import Path

from tasks import worker_disk
from tasks.worker_disk import clean, clean_now_and_then, encoder_work

DAY_S = 86_400.0
NOW = 1_000 * DAY_S


def put(path: Path, days_ago: float, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    at = NOW - days_ago * DAY_S
    for place in (path, path.parent):
        os.utime(place, (at, at))
    return path


def test_scratch_that_nobody_wrote_to_for_a_week_is_deleted(tmp_path: Path) -> None:
    old = put(tmp_path / "work" / "rebuild_index.night.embed" / "spark.log", 8).parent
    new = put(tmp_path / "work" / "rebuild_index.later.embed" / "spark.log", 6).parent
    state = put(tmp_path / "work" / "stream" / "round.json", 100)
    assert clean(tmp_path, 0, NOW) == [old]
    assert (old.exists(), new.exists(), state.exists()) == (False, True, True)


def test_what_a_killed_process_left_half_written_is_deleted_after_a_week(tmp_path: Path) -> None:
    places = (
        "work/.stream.json.ab12.tmp", "work/encoder/trial.json", "work/encoder/pixels/.train-1.npy.ab12.tmp",
        "cache/files/.ab12.cd34.tmp", "cache/encoders/.incoming-1/student.fp32.onnx",
    )  # fmt: skip
    old = [put(tmp_path / f"{place}.old", 8) for place in places[:4]]
    old.append(put(tmp_path / places[4], 8).parent)
    new = [put(tmp_path / place, 6) for place in places[:4]]
    new.append(put(tmp_path / "cache/encoders/.incoming-2/student.fp32.onnx", 6))
    stamp = put(tmp_path / "work" / worker_disk.STAMP, 100)
    assert set(clean(tmp_path, 0, NOW)) == set(old)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in [*new, stamp])


def test_of_the_caches_what_was_used_longest_ago_goes_until_they_fit(tmp_path: Path) -> None:
    pixels = put(encoder_work(tmp_path) / "pixels" / "train-1.npy", 9)
    raw = put(encoder_work(tmp_path) / "raw" / "evaluated.npz", 10)
    file = put(tmp_path / "cache" / "files" / "ab12", 5)
    encoder = put(tmp_path / "cache" / "encoders" / "run1" / "student.fp32.onnx", 3).parent
    assert clean(tmp_path, 4e-6, NOW) == [], "4000 bytes are allowed"
    assert clean(tmp_path, 3e-6, NOW) == [raw]
    at = NOW - DAY_S * 4
    os.utime(pixels, (NOW - 2 * DAY_S, at))  # was read two days ago
    assert clean(tmp_path, 2e-6, NOW) == [file]
    assert clean(tmp_path, 1e-6, NOW) == [encoder]
    assert pixels.exists()


def test_what_was_used_within_a_day_stays_whatever_the_bound(tmp_path: Path) -> None:
    put(tmp_path / "cache" / "files" / "ab12", 0.5)
    assert clean(tmp_path, 1e-9, NOW) == []


def test_a_worker_cleans_at_most_once_an_hour(tmp_path: Path) -> None:
    clean_now_and_then(tmp_path, 0)
    old = put(tmp_path / "work" / "rebuild_index.night.embed" / "spark.log", 8).parent
    clean_now_and_then(tmp_path, 0)
    assert old.exists()
    before = time.time() - worker_disk.EVERY_S - 1
    os.utime(tmp_path / "work" / worker_disk.STAMP, (before, before))
    clean_now_and_then(tmp_path, 0)
    assert not old.exists()
