"""Running one function in a process of its own, and how much memory it took at most."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a function gave, and what it took: seconds on the clock, seconds of CPU, and the largest resident size in MiB."""

    answer: Any
    seconds: float
    cpu_s: float
    peak_mib: float


def measured(work: Callable[..., Any], *arguments: Any) -> Measured:
    """Runs `work` in a fresh process. On a busy machine the CPU seconds say more than the clock. Raises RuntimeError when it failed."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, work, arguments))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} ended without an answer") from None
    finally:
        process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _run(there: Connection, work: Callable[..., Any], arguments: tuple) -> None:
    started = time.perf_counter()
    try:
        answer = work(*arguments)
    except Exception as error:
        there.send(f"{work.__name__}: {type(error).__name__}: {error}")
        raise
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    there.send(Measured(answer, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))
