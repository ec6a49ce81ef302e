"""Phase timings of a search, and the deadline that is checked before each phase."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class DeadlinePassed(Exception):
    """The request's deadline has passed; the message names the phase that was not started."""


@dataclass(frozen=True)
class Deadline:
    """A deadline at `at` (seconds by `clock`); infinity: never."""

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.at - self.clock()

    def check(self, phase: str) -> None:
        """Raises DeadlinePassed, naming the phase about to start, when the deadline has passed."""
        if self.left_s() < 0:
            raise DeadlinePassed(
                f"the time for this request was over before its phase {phase!r} began; try again, or ask for less"
            )


@dataclass(frozen=True)
class Phase:
    """A timed phase: name, start (seconds since the epoch) and duration."""

    name: str
    began_s: float
    took_s: float


class Timings:
    """Times the phases of one search, and starts none after the `deadline`."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self.began = time.perf_counter()
        self.done: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block and records it unless it raises. Raises DeadlinePassed before the block when the deadline has passed."""
        self.deadline.check(name)
        at, began = time.time(), time.perf_counter()
        yield
        self.done.append(Phase(name, at, time.perf_counter() - began))

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds per phase, and `total` since construction."""
        spent: dict[str, float] = {}
        for phase in self.done:
            spent[phase.name] = spent.get(phase.name, 0.0) + 1e3 * phase.took_s
        spent["total"] = 1e3 * (time.perf_counter() - self.began)
        return {name: round(ms, 3) for name, ms in spent.items()}
