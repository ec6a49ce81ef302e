"""A password in every setting that can hold one, and the search for them in whatever a run leaves behind."""

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import psutil

from tasks.settings import Settings

CANARY = "canary%2Fof-"
"""Each password begins so: with a slash, percent-encoded as in an address."""
FORMS = tuple(form.encode() for form in (CANARY, CANARY.replace("%2F", "/")))


def with_canaries(settings: Settings, postgres: str) -> Settings:
    """The settings with a password in each address and secret; the catalogue is the one at `postgres` (…://postgres:@…)."""
    assert "postgres:@" in postgres
    return replace(
        settings, catalog=postgres.replace("postgres:@", f"postgres:{CANARY}catalogue@"),
        mlflow_uri=settings.mlflow_uri.replace("://", f"://pipeline:{CANARY}mlflow@"), airflow_password=f"{CANARY}airflow",
        admin_token=f"{CANARY}admin", webhook_secret=f"{CANARY}webhook",
        alert_url=f"http://127.0.0.1:9/hook/{CANARY}alert?token={CANARY}alert-token",
    )  # fmt: skip


def found_in(data: bytes | str) -> bool:
    """Whether the data holds a canary, percent-encoded or not."""
    data = data.encode() if isinstance(data, str) else data
    return any(form in data for form in FORMS)


def files_with_canaries(folders: Iterable[Path]) -> list[str]:
    """All files below the folders that hold a canary, or whose names do."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path) for path in files if found_in(str(path)) or found_in(path.read_bytes()))


OWN = ("tests.dags.in_process", "redis-server", "multiprocessing.resource_tracker", "file\0-b\0")
"""Processes that may hold secrets: those that run Airflow's tasks with Python's own helpers (`platform.architecture` asks `file` what
kind of program Python is, where that is installed), and the server that asks for one."""


class ChildWatch:
    """Looks at the environments and command lines of all processes below this one while the block runs.

    `held` gets the programs that had a canary, but those that run Airflow's tasks (`tests.dags.in_process`) and fork them.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.seen: set[str] = set()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ChildWatch":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.done.set()
        self.thread.join(20)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.3):
            for process in me.children(recursive=True):
                try:
                    command = "\0".join(process.cmdline())
                    environ = Path(f"/proc/{process.pid}/environ").read_bytes()
                except (psutil.Error, OSError):
                    continue
                if any(name in command for name in OWN):
                    continue
                program = " ".join(command.split("\0")[:4])[:200]
                self.seen.add(os.path.basename(program.split(" ")[0]))
                if found_in(environ) or found_in(command):
                    self.held.add(program)
