"""A task's process ends with the supervisor that Airflow watches it by."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tasks.settings import PROJECT

SUPERVISOR = """
import os, sys, time
if os.fork() == 0:
    from setproctitle import setproctitle
    from dags.process import end_with_supervisor
    setproctitle(sys.argv[1])
    end_with_supervisor()
    end_with_supervisor()
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize(("title", "ends"), [("airflow worker -- 0199", True), ("a person's dag.test()", False)])
def test_a_task_is_killed_with_its_supervisor_and_with_nobody_else(title: str, ends: bool) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, title], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert supervisor.stdout is not None
    task = psutil.Process(int(supervisor.stdout.readline()))
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    _, alive = psutil.wait_procs([task], timeout=60 if ends else 1)
    for process in alive:
        process.kill()
    supervisor.stdout.close()
    assert bool(alive) is not ends
