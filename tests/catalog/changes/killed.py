"""Runs the steps of a refresh and kills its own process with SIGKILL at one place. For test_kills.

python -m tests.catalog.changes.killed <run key> <before|after> <module:attribute> <which call>
"""

import importlib
import os
import signal
import sys
from typing import Any

from tasks.pipelines import drain_changes, refresh_index


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


def main() -> None:
    run_key, when, place, which = sys.argv[1:]
    arm(when, place, int(which))
    plan = drain_changes.drain(run_key, wait_s=5)
    embedded = refresh_index.embed(plan)
    registered = refresh_index.register(plan, embedded)
    refresh_index.acknowledge(plan, registered, embedded)
    refresh_index.publish(registered)


if __name__ == "__main__":
    main()
