"""Kills one of this process's Python workers with SIGKILL as soon as the first chunk is committed. For test_job."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil


def arm() -> None:
    threading.Thread(target=_kill_one, args=(Path(sys.argv[1]),), daemon=True).start()


def _kill_one(folder: Path) -> None:
    """The workers are the daemon's children: the deepest python processes below this one."""
    while not list(folder.rglob("_commits/part-*.json")):
        time.sleep(0.005)
    while True:
        for process in psutil.Process().children(recursive=True):
            if (
                "pyspark.daemon" in " ".join(process.cmdline())
                and process.children() == []
                and "python" in process.parent().name()
            ):
                os.kill(process.pid, signal.SIGKILL)
                return
        time.sleep(0.005)
