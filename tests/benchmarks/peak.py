"""Running one function in a process of its own, and how much memory it took at most."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """(what `work` gave, seconds, peak resident MiB of a fresh process that did it). Raises RuntimeError when it failed."""
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
    there.send((answer, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
