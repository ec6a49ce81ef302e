"""Follows DAG runs in the terminal: one line per finished task, a progress bar per long running one."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tasks.demo.airflow import FINISHED, Airflow, TaskState
from tasks.errors import VitrineError

POLL_S = 1.0
PLAIN_EVERY_S = 15.0
STALE_S = 120.0
MARKS = {"success": "[green]✓[/]", "skipped": "[yellow]–[/]", "failed": "[red]✗[/]", "upstream_failed": "[red]✗[/]"}


class Follower:
    """Prints the progress of DAG runs until they end."""

    def __init__(self, airflow: Airflow, console: Console, progress: Path) -> None:
        self.airflow, self.console, self.progress = airflow, console, progress
        self.last_plain = 0.0

    def follow(self, dag: str, run_id: str, limit_s: float) -> str:
        """Follows a run to its end; returns its final state. Raises VitrineError with a failed task's reason."""
        self.console.print(f"[bold]{dag}[/]  [dim]{run_id}[/]")
        shown: set[str] = set()
        end = time.monotonic() + limit_s
        with Live(console=self.console, refresh_per_second=4, transient=True) as live:
            while time.monotonic() < end:
                state = self.airflow.run(dag, run_id)["state"]
                tasks = self.airflow.tasks(dag, run_id)
                for task in tasks:
                    if task.state in FINISHED and task.label not in shown and task.state != "removed":
                        shown.add(task.label)
                        self.console.print(_line(task))
                live.update(self._under_way(tasks))
                if state in ("success", "failed"):
                    if state == "failed":
                        raise VitrineError(self._reason(dag, run_id, tasks))
                    return state
                time.sleep(POLL_S)
        raise VitrineError(f"{dag} did not end within {limit_s:.0f} s; look at it in Airflow: {self.airflow.url}")

    def next_run(self, dag: str, known: set[str], limit_s: float) -> str | None:
        """The id of a new run, as soon as it exists; None when none appeared in time."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            for run in self.airflow.runs(dag):
                if run["dag_run_id"] not in known:
                    return run["dag_run_id"]
            time.sleep(POLL_S)
        return None

    def _under_way(self, tasks: list[TaskState]) -> Table:
        grid = Table.grid(padding=(0, 1))
        bars = read_progress(self.progress)
        for bar in bars:
            rate = (bar["done"] - bar["before"]) / max(time.time() - bar["started"], 1e-9)
            text = f"{bar['done']}/{bar['total']} {bar['unit']}, {rate:.0f}/s {bar['note']}"
            grid.add_row("   ", bar["name"], ProgressBar(total=max(bar["total"], 1), completed=bar["done"], width=30), text)
        running = [t.label for t in tasks if t.state in ("running", "queued", "scheduled", "up_for_retry")]
        if running and not bars:
            grid.add_row("   ", f"[dim]{', '.join(running)} …[/]")
        if not self.console.is_terminal and bars and time.monotonic() - self.last_plain > PLAIN_EVERY_S:
            self.last_plain = time.monotonic()
            for bar in bars:
                share = 100 * bar["done"] / max(bar["total"], 1)
                self.console.print(f"     {bar['name']} {share:3.0f} %  {bar['done']}/{bar['total']} {bar['unit']} {bar['note']}")
        return grid

    def _reason(self, dag: str, run_id: str, tasks: list[TaskState]) -> str:
        failed = next((t for t in tasks if t.state == "failed"), None)
        if failed is None:
            return f"{dag} failed; look at it in Airflow: {self.airflow.url}"
        entries = self.airflow.log_entries(dag, run_id, failed.task, failed.attempt, failed.map_index)
        if told := _last_words(entries):
            return f"{dag}, task {failed.label}: {told}"
        lines = [line for entry in entries for line in entry.splitlines() if not line.startswith("::")]
        return f"{dag}, task {failed.label} failed; the end of its log:\n" + "\n".join(lines[-25:])

    def reason(self, dag: str, run_id: str, task: str) -> str:
        """A task's message about being skipped or failing, "" for none."""
        found = next((t for t in self.airflow.tasks(dag, run_id) if t.task == task), None)
        if found is None:
            return ""
        return _last_words(self.airflow.log_entries(dag, run_id, task, found.attempt, found.map_index))


def _last_words(entries: list[str]) -> str:
    """The message with which a task ended deliberately."""
    for entry in reversed(entries):
        for kind in ("Task failed: ", "Skipping task: ", "AirflowFailException: ", "AirflowSkipException: "):
            if kind in entry:
                return entry.partition(kind)[2].strip()
    return ""


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """The progress of running steps, from the files they write."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue
        if time.time() - record["updated"] < STALE_S:
            found.append(record)
    return found


def _line(task: TaskState) -> str:
    took = f"{task.duration_s:6.1f} s" if task.duration_s is not None else "        "
    return f"  {MARKS.get(task.state, '?')} {task.label:<22} {task.state:<16} {took}"
