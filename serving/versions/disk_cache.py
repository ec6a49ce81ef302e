"""Disk cache of segment files and encoders by sha256, with LRU eviction; several processes may share it."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.contract.files import ContractError

PRIVATE, READ_ONLY = 0o700, 0o444
FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_FREE = 65_536
"""A disk with less is full: MLflow's downloads fail on it without saying why."""


class DiskCache:
    """`folder`/files and `folder`/encoders, at most `limit_bytes`. Downloads are staged in `incoming/` and renamed into place.

    The folders are the owner's alone (0700) and what lies in them is read-only (0444): nobody else can change what was verified.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes, self.prepared = folder, limit_bytes, False

    def file(self, sha256: str) -> Path:
        return self.folder / "files" / sha256

    def encoder(self, sha256: str) -> Path:
        return self.folder / "encoders" / sha256

    @contextmanager
    def staging(self, need_bytes: int = 0) -> Iterator[Path]:
        """A temporary folder below `incoming/`, on the same disk; removed at the end with what was not moved out of it.

        Raises ContractError where what failed inside lacked space: the disk is full, or had less than `need_bytes`.
        """
        self._prepare_once()
        full = shutil.disk_usage(self.folder).free < need_bytes
        try:
            with self._locked(fcntl.LOCK_SH), tempfile.TemporaryDirectory(dir=self.folder / "incoming") as folder:
                try:
                    yield Path(folder)
                except Exception as error:  # before the folder is removed
                    full = full or _is_full(error) or shutil.disk_usage(self.folder).free < LEAST_FREE
                    raise
        except Exception as error:
            if full or _is_full(error):
                raise self._no_space() from None
            raise

    def _no_space(self) -> ContractError:
        return ContractError(
            f"there is no space left on the disk of the cache {self.folder}; free some, give it a larger disk, or lower "
            "VITRINE_CACHE_BYTES"
        )

    def _prepare_once(self) -> None:
        """Prepares the folders once. Raises ContractError where the disk is full."""
        try:
            if not self.prepared:
                self._prepare()
        except OSError as error:
            raise (self._no_space() if _is_full(error) else error) from None

    def evict(self, in_use: set[str]) -> None:
        """Removes the least recently used files and encoders over the limit, except those `in_use`.

        A memory-mapped file stays readable until it is closed.
        """
        try:
            kept = [(p.stat().st_mtime, _bytes(p), p) for name in ("files", "encoders") for p in (self.folder / name).iterdir()]
            total = sum(size for _, size, _ in kept)
            for _, size, path in sorted(kept):
                if total <= self.limit_bytes:
                    return
                if path.name not in in_use:
                    with self.staging() as going:  # nobody ever sees half of an encoder
                        path.replace(going / path.name)
                    total -= size
        except FileNotFoundError:  # another process makes room at the same moment
            return

    def _prepare(self) -> None:
        """Makes the folders, and clears what killed processes left in `incoming`, unless another process is downloading now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _change_mode(self.folder, PRIVATE)
        for name in ("files", "encoders", "incoming"):
            (self.folder / name).mkdir(exist_ok=True)
            _change_mode(self.folder / name, PRIVATE)
        for path in (*(self.folder / "files").iterdir(), *(self.folder / "encoders").iterdir()):
            make_read_only(path)  # of a release of before, which left them writable
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            for left in (self.folder / "incoming").iterdir() if alone else ():
                shutil.rmtree(left, ignore_errors=True)
        self.prepared = True

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Holds a file lock; yields whether it was acquired (False where the file system has no locks). It ends with the process."""
        with (self.folder / "incoming.lock").open("a+b") as lock:
            try:
                fcntl.flock(lock, how)
                had = True
            except OSError:
                had = False
            yield had


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or quota is full. MLflow keeps only the text of some."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or any(os.strerror(number) in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def make_read_only(path: Path) -> Path:
    """Makes a file read-only (0444), or all files of a folder, which becomes the owner's alone (0700); returns the path."""
    for found in [path, *(path.rglob("*") if path.is_dir() else ())]:
        _change_mode(found, PRIVATE if found.is_dir() else READ_ONLY)
    return path


def _change_mode(path: Path, mode: int) -> None:
    """As far as the volume lets us (a mounted one may be another user's), and unless another process evicted it just now."""
    with suppress(PermissionError, FileNotFoundError):
        path.chmod(mode)


def touch(path: Path) -> Path:
    """Marks a path as most recently used; returns it."""
    os.utime(path)
    return path


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
