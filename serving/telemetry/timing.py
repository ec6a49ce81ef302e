"""Timings of the phases of one search, and the deadline that each phase checks before it begins."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class DeadlinePassed(Exception):
    """The time a request was given is over; the message names the phase that was not begun any more."""


@dataclass(frozen=True)
class Deadline:
    """The moment `at` (seconds by `clock`) at which a request's time is over; infinity: never."""

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.at - self.clock()

    def check(self, phase: str) -> None:
        """Raises DeadlinePassed, naming the phase that was to begin, when the time is over."""
        if self.left_s() < 0:
            raise DeadlinePassed(
                f"the time for this request was over before its phase {phase!r} began; try again, or ask for less"
            )


@dataclass(frozen=True)
class Phase:
    """One phase's name, when it began (seconds since the epoch) and how long it took."""

    name: str
    began_s: float
    took_s: float


class Timings:
    """The phases of one search in order, each timed, each begun only before the `deadline`."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self.began = time.perf_counter()
        self.done: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block, and records it unless it raises. Raises DeadlinePassed before it when the time is over."""
        self.deadline.check(name)
        at, began = time.time(), time.perf_counter()
        yield
        self.done.append(Phase(name, at, time.perf_counter() - began))

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds per phase, and `total` since this object was made."""
        spent: dict[str, float] = {}
        for phase in self.done:
            spent[phase.name] = spent.get(phase.name, 0.0) + 1e3 * phase.took_s
        spent["total"] = 1e3 * (time.perf_counter() - self.began)
        return {name: round(ms, 3) for name, ms in spent.items()}
