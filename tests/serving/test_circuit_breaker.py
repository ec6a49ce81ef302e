"""Retries and the circuit breaker, without a service."""

import json
import threading
import time
from collections.abc import Callable

import pytest

from serving.circuit_breaker import FAILURES, PAUSE_S, CircuitBreaker, RemoteUnavailable
from serving.contract.files import ContractError


class Away(RemoteUnavailable):
    """What the breaker under test raises."""


def made_up(clock: Callable[[], float] = time.monotonic) -> CircuitBreaker:
    return CircuitBreaker("made up", Away, (ConnectionError,), clock=clock)


def test_a_call_is_repeated_where_that_may_help_and_refused_while_the_service_is_away() -> None:
    now, calls = [0.0], []
    breaker = made_up(lambda: now[0])

    def failing() -> None:
        calls.append(1)
        raise ConnectionError("postgresql://shop:secret@db/x: no route")

    for _ in range(FAILURES):
        with pytest.raises(Away, match="does not answer") as raised:
            breaker(failing)
        assert "secret" not in str(raised.value)
    assert len(calls) == 3 * FAILURES
    with pytest.raises(Away, match="tried again"):
        breaker(failing)
    assert len(calls) == 3 * FAILURES
    now[0] += PAUSE_S
    assert breaker.away() == ""
    assert breaker(lambda: 7) == 7
    assert breaker.away() == ""


def opened(now: list[float]) -> CircuitBreaker:
    """An open breaker; `now` is its clock."""
    breaker = made_up(lambda: now[0])
    for _ in range(FAILURES):
        with pytest.raises(Away):
            breaker(lambda: (_ for _ in ()).throw(RuntimeError("away")))
    assert breaker.away()
    return breaker


def test_a_service_that_answers_the_probe_is_there_again_whatever_it_says() -> None:
    now = [0.0]
    breaker = opened(now)
    now[0] += PAUSE_S
    with pytest.raises(ContractError, match="gone"):
        breaker(lambda: (_ for _ in ()).throw(ContractError("the collection is gone")))
    assert breaker.away() == ""
    assert breaker(lambda: 7) == 7


def test_of_many_calls_at_the_end_of_a_pause_one_goes() -> None:
    now, calls, refused = [0.0], [], []
    breaker = opened(now)
    now[0] += PAUSE_S
    together, answered = threading.Barrier(8), threading.Event()

    def probe() -> None:
        calls.append(1)
        answered.wait(60)

    def ask() -> None:
        together.wait(60)
        try:
            breaker(probe)
        except Away:
            refused.append(1)
            if len(refused) == 7:
                answered.set()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), len(refused)) == (1, 7)
    assert breaker.away() == ""


def test_errors_of_the_version_are_no_outage() -> None:
    breaker = made_up()
    for _ in range(FAILURES + 1):
        with pytest.raises(ContractError, match="gone"):
            breaker(lambda: (_ for _ in ()).throw(ContractError("the collection is gone")))
    assert breaker.away() == ""


def test_an_answer_that_makes_no_sense_is_a_failure_of_the_service() -> None:
    breaker = made_up()
    for _ in range(FAILURES):
        with pytest.raises(Away, match="does not answer: Expecting value"):
            breaker(lambda: json.loads("<html>"))
    assert "Expecting value" in breaker.away()
