"""How far the workers are: each leaves one byte per picture in a small file per chunk, and the driver watches them grow."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.progress import Progress

EVERY_S = 0.5


@contextmanager
def watched(name: str, tally: Path, total: int, unit: str) -> Iterator[None]:
    """Shows progress while the files in `tally` grow; a chunk that is tried twice counts once at most.

    Workers on other machines, which do not see the folder, are simply not counted.
    """
    for leftover in tally.iterdir():
        leftover.unlink()
    stop = threading.Event()
    with Progress(name, total, unit) as progress:

        def watch() -> None:
            while not stop.wait(EVERY_S):
                progress.set(min(sum(file.stat().st_size for file in tally.iterdir()), total))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        progress.set(total)
