"""Background threads that poll the aliases and load versions."""

import threading
from collections.abc import Callable

LOADER_POLL_S = 0.2


class Poller:
    """Repeats each of `calls` in its own thread, from `start` to `close`."""

    def __init__(self, calls: dict[str, tuple[Callable[[], object], float | None]]) -> None:
        """`calls` by name: the function, and the seconds between two calls (None: the function returns them)."""
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._repeat, args=(call, every_s), name=name, daemon=True)
            for name, (call, every_s) in calls.items()
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def close(self, limit_s: float = 10.0) -> None:
        """Stops the threads; waits at most `limit_s` for each call in progress."""
        self.stop.set()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(limit_s)

    def _repeat(self, call: Callable[[], object], every_s: float | None) -> None:
        while not self.stop.is_set():
            given = call()
            self.stop.wait(float(given) if every_s is None else every_s)  # type: ignore[arg-type]
