"""Calls of a remote service, a vector database or an encoder server: retries with backoff, and a circuit breaker while it is away."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from serving.contract.addresses import error_line
from serving.contract.files import ContractError

T = TypeVar("T")
Errors = tuple[type[Exception], ...]

ATTEMPTS = 3
FAILURES = 3
"""Calls that failed in a row, each after all its attempts, before the breaker opens."""
PAUSE_S = 5.0
"""Seconds for which an open breaker refuses calls; then it lets one through, whose outcome decides."""


class RemoteUnavailable(Exception):
    """A service in another process does not answer; the message says which and why."""

    status, reason = 503, "remote_away"
    headers = {"Retry-After": f"{PAUSE_S:.0f}"}


class CircuitBreaker:
    """Runs calls of one service, from any thread; open while that is away.

    `unavailable` is what a call raises that fails or is refused. `transient`: errors worth another attempt; any other fails at once.
    `answers`: errors by which the service answered; they pass, and close the breaker.
    """

    def __init__(
        self, service: str, unavailable: type[RemoteUnavailable], transient: Errors, answers: Errors = (ContractError,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.service, self.unavailable, self.transient, self.answers = service, unavailable, transient, answers
        self.clock, self.lock = clock, threading.Lock()
        self.failures, self.open_until = 0, 0.0
        self.last = ""

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of `call`. Raises `unavailable` where it fails or is refused, and one of `answers` as it comes."""
        self._admit()
        try:
            result = self._attempts()(call)
        except self.answers:
            self._answered()
            raise
        except Exception as error:  # every client has its own classes
            self._failed(error)
            raise self.unavailable(f"{self.service} does not answer: {self.last}") from error
        self._answered()
        return result

    def away(self) -> str:
        """Why calls are refused at the moment; "" where they are not."""
        left = self.open_until - self.clock()
        return f"{self.service} does not answer ({self.last}); tried again in {left:.0f} s" if left > 0 else ""

    def _attempts(self) -> Retrying:
        return Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05), reraise=True,
            retry=retry_if_exception_type(self.transient),
        )  # fmt: skip

    def _admit(self) -> None:
        """Lets one call a pause through while the breaker is open. Raises `unavailable` for the others."""
        with self.lock:
            if why := self.away():
                raise self.unavailable(why)
            if self.failures >= FAILURES:
                self.open_until = self.clock() + PAUSE_S

    def _answered(self) -> None:
        with self.lock:
            self.failures, self.open_until = 0, 0.0

    def _failed(self, error: Exception) -> None:
        self.last = error_line(error, 200)
        with self.lock:
            self.failures += 1
            if self.failures >= FAILURES:
                self.open_until = self.clock() + PAUSE_S
