"""What is kept of versions on disk: least recently used goes first, and only what dead processes left is cleared away."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serving.contract.files import ContractError
from serving.versions.disk_cache import DiskCache, touch

FETCHING = """
import sys
from pathlib import Path
from serving.versions.disk_cache import DiskCache
with DiskCache(Path(sys.argv[1]), 1).staging() as folder:
    (folder / "half").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def kept(tmp_path: Path) -> DiskCache:
    """Three files of ten bytes, and an encoder of ten in two files, used in the order: old, encoder, middle, new."""
    found = DiskCache(tmp_path, 25)
    with found.staging():
        pass
    (found.encoder("encoder") / "deep").mkdir(parents=True)
    (found.encoder("encoder") / "encoder.json").write_bytes(b"12345")
    (found.encoder("encoder") / "deep" / "model").write_bytes(b"12345")
    for name in ("old", "middle", "new"):
        found.file(name).write_bytes(b"1234567890")
    for age, path in enumerate([found.file("new"), found.file("middle"), found.encoder("encoder"), found.file("old")]):
        os.utime(path, (1000 - age, 1000 - age))
    return found


def names(kept: DiskCache) -> set[str]:
    return {p.name for name in ("files", "encoders", "incoming") for p in (kept.folder / name).iterdir()}


def test_the_least_recently_used_files_and_encoders_go_first(kept: DiskCache) -> None:
    kept.evict(set())
    assert names(kept) == {"middle", "new"}


def test_what_was_used_just_now_and_what_is_in_use_stays(kept: DiskCache) -> None:
    touch(kept.encoder("encoder"))
    kept.evict({"old"})
    assert names(kept) == {"old", "encoder"}


def test_within_its_limit_everything_stays(kept: DiskCache) -> None:
    kept.limit_bytes = 40
    kept.evict(set())
    assert names(kept) == {"old", "middle", "new", "encoder"}


def test_what_a_killed_process_left_on_its_way_is_cleared_and_what_a_living_one_fetches_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCHING, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        theirs = Path(other.stdout.readline().strip())
        with DiskCache(tmp_path, 1).staging() as mine:
            assert (theirs / "half").exists()
            assert set((tmp_path / "incoming").iterdir()) == {mine, theirs}
    finally:
        other.kill()
        other.communicate()
    assert theirs.exists()
    with DiskCache(tmp_path, 1).staging() as mine:
        assert set((tmp_path / "incoming").iterdir()) == {mine}


def test_what_a_release_of_before_left_writable_is_made_read_only(kept: DiskCache) -> None:
    kept.folder.chmod(0o755)
    again = DiskCache(kept.folder, 25)
    with again.staging():
        pass
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (kept.folder, *kept.folder.rglob("*")) if p.name != "incoming.lock"}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o444}
    kept.evict(set())
    assert names(kept) == {"middle", "new"}, "what is read-only goes like anything else"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("The following failures occurred: {'a': OSError(28, 'No space left on device')}"),
    ],
    ids=["disk", "quota", "told by MLflow"],
)
def test_a_full_disk_is_said_to_be_full_however_a_library_puts_it(tmp_path: Path, error: Exception) -> None:
    def fetch(error: Exception, need_bytes: int = 0) -> None:
        with DiskCache(tmp_path, 1).staging(need_bytes):
            try:
                raise error
            except Exception:
                raise KeyError("check the path") from None

    with pytest.raises(ContractError, match="there is no space left on the disk of the cache"):
        fetch(error)
    with pytest.raises(ContractError, match="there is no space left on the disk of the cache"):
        fetch(ValueError("a file that is larger than any disk"), 2**62)
    with pytest.raises(KeyError):
        fetch(ValueError("another fault"))
