"""The phases of one search: how long each took, and whether there is time left for the next."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType


class DeadlinePassed(Exception):
    """The time a request was given is over; the message names the phase that was not begun any more."""


@dataclass(frozen=True)
class Phase:
    """One phase's name, when it began (seconds since the epoch) and how long it took."""

    name: str
    began_s: float
    took_s: float


class Phases:
    """Times phases in order. A phase that would begin after `latest` (by `clock`) raises DeadlinePassed instead."""

    def __init__(self, latest: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest, self.clock = latest, clock
        self.began = time.perf_counter()
        self.done: list[Phase] = []

    def phase(self, name: str) -> "Running":
        """For a `with` around the phase; one that fails is not kept."""
        self.check(name)
        return Running(self.done, name)

    def check(self, name: str) -> None:
        """Raises DeadlinePassed when the time is over."""
        if self.latest is not None and self.clock() > self.latest:
            raise DeadlinePassed(
                f"the time for this request was over before its phase {name!r} began; try again, or ask for less"
            )

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds per phase, and `total` since this object was made."""
        spent: dict[str, float] = {}
        for phase in self.done:
            spent[phase.name] = spent.get(phase.name, 0.0) + 1e3 * phase.took_s
        spent["total"] = 1e3 * (time.perf_counter() - self.began)
        return {name: round(ms, 3) for name, ms in spent.items()}


class Running:
    """A phase while it runs. A class, not a generator under `contextmanager`: every search enters four."""

    __slots__ = ("at", "began", "done", "name")

    def __init__(self, done: list[Phase], name: str) -> None:
        self.done, self.name = done, name

    def __enter__(self) -> None:
        self.at, self.began = time.time(), time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.done.append(Phase(self.name, self.at, time.perf_counter() - self.began))
