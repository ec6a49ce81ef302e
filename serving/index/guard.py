"""Calls of another engine or an encoder server: retries with backoff, and a circuit breaker while it is away."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from serving.contract.addresses import error_line
from serving.contract.files import ContractError
from serving.index.engine import EngineUnavailable

T = TypeVar("T")

ATTEMPTS = 3
FAILURES = 3
"""Calls that failed in a row, each after all its attempts, before the next ones are refused at once."""
PAUSE_S = 5.0
"""Seconds for which calls are refused; then one is let through, whose outcome decides."""


class Guard:
    """Runs calls of one engine. `transient` are the errors worth another attempt; any other error of the engine fails at once.

    `unavailable` is what a call raises that fails or is refused.
    """

    def __init__(
        self, engine: str, clock: Callable[[], float] = time.monotonic, unavailable: type[EngineUnavailable] = EngineUnavailable
    ) -> None:
        self.engine, self.clock, self.unavailable = engine, clock, unavailable
        self.transient: tuple[type[Exception], ...] = (OSError, TimeoutError)
        self.lock = threading.Lock()
        self.failures, self.closed_until = 0, 0.0
        self.last = ""

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of `call`. Raises EngineUnavailable where it fails or is refused. ContractError and its own
        EngineUnavailable pass: the engine answered."""
        self._admit()
        try:
            result = self._attempts()(call)
        except (ContractError, EngineUnavailable):
            self._answered()
            raise
        except Exception as error:  # every client has its own classes
            self._failed(error)
            raise self.unavailable(f"{self.engine} does not answer: {self.last}") from error
        self._answered()
        return result

    def away(self) -> str:
        """Why calls are refused at the moment; "" where they are not."""
        left = self.closed_until - self.clock()
        return f"{self.engine} does not answer ({self.last}); tried again in {left:.0f} s" if left > 0 else ""

    def _attempts(self) -> Retrying:
        return Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05), reraise=True,
            retry=retry_if_exception_type(self.transient),
        )  # fmt: skip

    def _admit(self) -> None:
        """Lets one call a pause through while the breaker is open. Raises EngineUnavailable for the others."""
        with self.lock:
            if why := self.away():
                raise self.unavailable(why)
            if self.failures >= FAILURES:
                self.closed_until = self.clock() + PAUSE_S

    def _answered(self) -> None:
        with self.lock:
            self.failures, self.closed_until = 0, 0.0

    def _failed(self, error: Exception) -> None:
        self.last = error_line(error, 200)
        with self.lock:
            self.failures += 1
            if self.failures >= FAILURES:
                self.closed_until = self.clock() + PAUSE_S
