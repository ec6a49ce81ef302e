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


@contextmanager
def show_progress(
    name: str, progress_dir: Path, total: int, unit: str, count_stored: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Shows progress while the files in `progress_dir` grow; a retried chunk counts at most once.

    Of workers on other machines, which do not see the folder, `count_stored` tells how many pictures they have stored.
    """
    for leftover in progress_dir.iterdir():
        leftover.unlink()
    stop = threading.Event()
    with Progress(name, total, unit) as progress:

        def watch() -> None:
            asked = time.monotonic()
            while not stop.wait(EVERY_S):
                done, rejected = count_pictures(progress_dir)
                if not done and time.monotonic() - asked > ELSEWHERE_S:
                    done, asked = max(count_stored(), progress.done), time.monotonic()
                if done:
                    progress.set(min(done, total), f"{rejected} in quarantine")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        progress.set(total, f"{count_pictures(progress_dir)[1]} in quarantine")


def count_pictures(progress_dir: Path) -> tuple[int, int]:
    """(finished pictures, rejected pictures among them)."""
    sizes = [(file.suffix == REJECTED, file.stat().st_size) for file in progress_dir.iterdir()]
    return sum(size for bad, size in sizes if not bad), sum(size for bad, size in sizes if bad)
