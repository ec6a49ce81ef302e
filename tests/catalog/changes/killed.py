"""Runs the steps of a refresh in a process of its own, which kills itself with SIGKILL at one place. For test_kills."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from tasks.catalog.changes import kafka
from tasks.pipelines import drain_changes, refresh_index
from tests.brief import measure_briefly

SETTLE_S = 60.0
"""A broker of a busy machine may be silent for longer than one that has no more to give."""


def server() -> ForkServerContext:
    """Where the processes are forked from: one without threads, which imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mlflow", "mlflow.artifacts", "tasks.pipelines.refresh_index", "tests.catalog.changes.killed"]
    )
    return context


def arm(when: str, place: str, which: int) -> None:
    """Replaces a function or method by itself and a death, before or after its `which`th call."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *names, last = path.split(".")
    for name in names:
        owner = getattr(owner, name)
    real, calls = getattr(owner, last), [0]

    def mortal(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == which and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*given, **named)
        if calls[0] == which:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, mortal)


def refresh_and_die(environ: Mapping[str, str], run_key: str, when: str, place: str, which: int) -> None:
    """Refreshes the index; this process is killed before or after the `which`th call of `place`, "module:attribute"."""
    os.environ.update(environ)
    measure_briefly(pytest.MonkeyPatch())
    kafka.SETTLE_S = SETTLE_S
    arm(when, place, which)
    plan = drain_changes.drain(run_key, wait_s=5)
    embedded = refresh_index.embed(plan)
    registered = refresh_index.register(plan, embedded)
    refresh_index.acknowledge(plan, registered, embedded)
    refresh_index.publish(registered)
