"""Ties a task's process to its supervisor: a task that Airflow takes for dead writes nothing beside its retry."""

import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""
TITLE = "airflow worker -- "
"""How Airflow titles the processes of tasks that a supervisor watches; `dag.test()` runs them in the process that called it."""


def end_with_supervisor() -> None:
    """Has the kernel kill this process when its supervisor dies, on Linux and in a supervised task only. Idempotent.

    Airflow starts a retry once the supervisor's heartbeats are missing, and a task of ours would go on alone for hours otherwise.
    Spark's JVM ends with its driver, whose end of a pipe closes, and the Python workers with the JVM.
    """
    if sys.platform != "linux":
        return
    import ctypes

    from setproctitle import getproctitle

    if getproctitle().startswith(TITLE):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
