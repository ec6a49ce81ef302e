"""Progress of workers: each appends one byte per picture to a file per chunk, whose sizes the driver sums."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.progress import Progress

EVERY_S = 0.5
ELSEWHERE_S = 10.0
"""How often finished chunks are counted in the store, where the workers do not see the folder."""
REJECTED = ".rejected"
REPORT_S = 10.0
"""Seconds between two reports at least."""

Report = Callable[[int, int], None]
"""Takes pictures done and in all."""


def no_report(done: int, total: int) -> None:
    """Reports to nobody."""


@contextmanager
def show_progress(
    name: str, progress_dir: Path, total: int, unit: str, count_stored: Callable[[], int] = lambda: 0,
    report: Report = no_report,
) -> Iterator[None]:  # fmt: skip
    """Shows progress while the files in `progress_dir` grow; a retried chunk counts at most once.

    `count_stored` tells how many pictures are stored: those of earlier attempts at the start, and those of workers on other machines,
    which do not see the folder. `report` is told at the start, every REPORT_S and at the end, in another thread; it must not raise.
    """
    for leftover in progress_dir.iterdir():
        leftover.unlink()
    stop, before = threading.Event(), count_stored()
    with Progress(name, total, unit, before) as progress:

        def watch() -> None:
            asked, reported = time.monotonic(), time.monotonic()
            report(before, total)
            while not stop.wait(EVERY_S):
                here, rejected = count_pictures(progress_dir)
                done = before + here
                if not here and time.monotonic() - asked > ELSEWHERE_S:
                    done, asked = max(count_stored(), progress.done), time.monotonic()
                if done:
                    progress.set(min(done, total), f"{rejected} in quarantine")
                if time.monotonic() - reported > REPORT_S:
                    report(progress.done, total)
                    reported = time.monotonic()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        progress.set(total, f"{count_pictures(progress_dir)[1]} in quarantine")
        report(total, total)


def count_pictures(progress_dir: Path) -> tuple[int, int]:
    """(finished pictures, rejected pictures among them)."""
    sizes = [(file.suffix == REJECTED, file.stat().st_size) for file in progress_dir.iterdir()]
    return sum(size for bad, size in sizes if not bad), sum(size for bad, size in sizes if bad)
