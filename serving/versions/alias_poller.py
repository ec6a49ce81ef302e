"""The threads in which a process follows the aliases and loads versions, while others answer."""

import threading
from collections.abc import Callable

LOADER_POLL_S = 0.2


class Poller:
    """Calls each of `calls` again and again in a thread of its own, from `start` to `close`."""

    def __init__(self, calls: dict[str, tuple[Callable[[], object], float | None]]) -> None:
        """`calls`: by name, what to call and how many seconds to wait between two calls; None: as many as the call gives."""
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._repeat, args=(call, every_s), name=name, daemon=True)
            for name, (call, every_s) in calls.items()
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def close(self, limit_s: float = 10.0) -> None:
        """Returns when every call under way has ended, at the latest after `limit_s` each."""
        self.stop.set()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(limit_s)

    def _repeat(self, call: Callable[[], object], every_s: float | None) -> None:
        while not self.stop.is_set():
            given = call()
            self.stop.wait(float(given) if every_s is None else every_s)  # type: ignore[arg-type]
