"""What a process has fetched of versions, on disk: files and encoders by their sha256, within a limit; several processes may share it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DiskCache:
    """`folder`/files and `folder`/encoders, of at most `limit_bytes`; what is on its way lies in `folder`/incoming until it is whole."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes, self.prepared = folder, limit_bytes, False

    def file(self, sha256: str) -> Path:
        return self.folder / "files" / sha256

    def encoder(self, sha256: str) -> Path:
        return self.folder / "encoders" / sha256

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder for what is on its way, on the same disk; gone at the end, with all that was not moved out of it."""
        if not self.prepared:
            self._prepare()
        with self._locked(fcntl.LOCK_SH), tempfile.TemporaryDirectory(dir=self.folder / "incoming") as folder:
            yield Path(folder)

    def evict(self, in_use: set[str]) -> None:
        """Removes the least recently used files and encoders over the limit, except those `in_use`.

        A file that is mapped stays readable until it is closed.
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
        """Makes the folders, and removes what killed processes left in `incoming`, unless another is fetching into it just now."""
        for name in ("files", "encoders", "incoming"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            for left in (self.folder / "incoming").iterdir() if alone else ():
                shutil.rmtree(left, ignore_errors=True)
        self.prepared = True

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Whether the lock was had. It ends with the process, however that ends; a disk that knows no locks gives none."""
        with (self.folder / "incoming.lock").open("a+b") as lock:
            try:
                fcntl.flock(lock, how)
                had = True
            except OSError:
                had = False
            yield had


def touch(path: Path) -> Path:
    """The path itself, as the one most recently used."""
    os.utime(path)
    return path


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
