"""Bounds what a worker keeps on its own disk below VITRINE_HOME: scratch of steps that ended long ago, and caches."""

import logging
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.registry.artifacts import CACHE_FOLDERS

log = logging.getLogger(__name__)

EVERY_S = 3600.0
"""A worker cleans up at most so often."""
ABANDONED_S = 7 * 86_400.0
"""Scratch of a step, or a file half written, of this long ago is nobody's: no step runs longer (execution_timeout in dags/)."""
IN_USE_S = 86_400.0
"""What was used within the last day is kept, whatever the bound: a running step may still open it."""
STAMP = ".cleaned"
WORK, CACHE, ENCODER = "work", "cache", "encoder"
"""Below VITRINE_HOME: scratch, of each step in a folder "<run key>.<step>"; the registry's cache; below `work` the caches of trainings."""


@dataclass(frozen=True)
class Kept:
    """A file or folder of a cache, its size, and when it was last used (epoch seconds)."""

    path: Path
    bytes: int
    used: float


def encoder_work(home: Path, forced: str = "") -> Path:
    """The folder of what trainings cache on this worker, keyed by content, so runs share it; a forced training has its own. Made."""
    folder = home / WORK / (f"{ENCODER}-{forced}" if forced else ENCODER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clean_now_and_then(home: Path, most_gb: float) -> None:
    """`clean`, unless this worker did within the last hour. Two steps that do so at once do no harm."""
    stamp = home / WORK / STAMP
    if stamp.exists() and time.time() - stamp.stat().st_mtime < EVERY_S:
        return
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()
    clean(home, most_gb, time.time())


def clean(home: Path, most_gb: float, now: float) -> list[Path]:
    """Deletes abandoned scratch, then of the caches what was used longest ago until they fit `most_gb` (0: any). Gives what went.

    Everything here can be fetched or made again.
    """
    gone = [k for k in _scratch(home) if now - k.used > ABANDONED_S]
    caches = sorted(_caches(home), key=lambda kept: kept.used)
    excess = sum(kept.bytes for kept in caches) - most_gb * 1e9 if most_gb else 0.0
    for kept in caches:
        if excess <= 0 or now - kept.used < IN_USE_S:
            break
        gone.append(kept)
        excess -= kept.bytes
    for kept in gone:
        log.info("%s: %.1f MB deleted from this worker's disk", kept.path, kept.bytes / 1e6)
        if kept.path.is_dir():
            shutil.rmtree(kept.path, ignore_errors=True)
        else:
            kept.path.unlink(missing_ok=True)
    return [kept.path for kept in gone]


def _scratch(home: Path) -> Iterator[Kept]:
    """Scratch of steps, and what belongs to no cache: half written, under a name that begins with a dot, or a file beside the caches."""
    yield from _kept(path for path in (home / WORK).glob("*.*") if path.name != STAMP)
    for name in CACHE_FOLDERS:
        yield from _kept((home / CACHE / name).glob(".*"))
    for work in sorted((home / WORK).glob(f"{ENCODER}*")):
        yield from _kept(work.glob("*/.*"))
        yield from _kept(path for path in work.glob("*") if path.is_file())


def _caches(home: Path) -> Iterator[Kept]:
    """Fetched files, encoders and manifests; of trainings decoded pictures, checkpoints, trials of int8 and raw results."""
    for name in CACHE_FOLDERS:
        yield from _kept((home / CACHE / name).glob("[!.]*"))
    for work in sorted((home / WORK).glob(f"{ENCODER}*")):
        yield from _kept(work.glob("*/[!.]*"))


def _kept(paths: Iterable[Path]) -> Iterator[Kept]:
    for path in sorted(paths):
        stats = [_stat(file) for file in ([path, *path.rglob("*")] if path.is_dir() else [path])]
        found = [s for s in stats if s is not None]
        if found:
            yield Kept(path, sum(s.st_size for s in found if not stat.S_ISDIR(s.st_mode)), max(_last_use(s) for s in found))


def _last_use(found: os.stat_result) -> float:
    """Looking into a folder is no use of what it holds."""
    return found.st_mtime if stat.S_ISDIR(found.st_mode) else max(found.st_mtime, found.st_atime)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another step's, which just ended
        return None
