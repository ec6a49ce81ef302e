"""How far the workers are: each leaves one byte per picture in a small file per chunk, and the driver watches them grow."""

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
def show_progress(name: str, tally: Path, total: int, unit: str, landed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Shows progress while the files in `tally` grow; a chunk that is tried twice counts once at most.

    Of workers on other machines, which do not see the folder, `landed` tells how many pictures they have stored.
    """
    for leftover in tally.iterdir():
        leftover.unlink()
    stop = threading.Event()
    with Progress(name, total, unit) as progress:

        def watch() -> None:
            asked = time.monotonic()
            while not stop.wait(EVERY_S):
                done, rejected = count_pictures(tally)
                if not done and time.monotonic() - asked > ELSEWHERE_S:
                    done, asked = max(landed(), progress.done), time.monotonic()
                if done:
                    progress.set(min(done, total), f"{rejected} in quarantine")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        progress.set(total, f"{count_pictures(tally)[1]} in quarantine")


def count_pictures(tally: Path) -> tuple[int, int]:
    """Pictures that are done, and those of them that were rejected."""
    sizes = [(file.suffix == REJECTED, file.stat().st_size) for file in tally.iterdir()]
    return sum(size for bad, size in sizes if not bad), sum(size for bad, size in sizes if bad)
