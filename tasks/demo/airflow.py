"""Client of Airflow's REST API for the terminal: trigger DAGs, follow runs and tasks."""

from dataclasses import dataclass
from typing import Any

import httpx

from tasks.errors import SettingsError, VitrineError
from tasks.settings import Settings, setting_sources

QUESTIONS = 4
"""How often a question is asked that gets no answer in time: on a busy machine Airflow is slow for minutes, and is not gone."""
FINISHED = ("success", "failed", "skipped", "upstream_failed", "removed")


@dataclass(frozen=True)
class TaskState:
    """One task instance: `map_index` is -1 unless mapped; `duration_s` is None until it ran; `attempt` is its latest."""

    task: str
    map_index: int
    state: str
    duration_s: float | None
    attempt: int = 1

    @property
    def label(self) -> str:
        return self.task if self.map_index < 0 else f"{self.task}[{self.map_index}]"


class Airflow:
    """A client of the API server at `url`; the token is fetched on first use and renewed when it expires."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.user, self.password = url.rstrip("/"), user, password
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON response of an /api/v2 call; one that changes nothing is asked again when it takes too long.

        Raises VitrineError with Airflow's message on failure.
        """
        for left in reversed(range(QUESTIONS if method == "GET" else 1)):
            try:
                answer = self.client.request(method, f"/api/v2{path}", **options)
                if answer.status_code == 401:
                    self._log_in()
                    answer = self.client.request(method, f"/api/v2{path}", **options)
                break
            except httpx.HTTPError as error:
                if not left or not isinstance(error, httpx.TimeoutException):
                    raise VitrineError(f"Airflow at {self.url} does not answer ({type(error).__name__})") from None
        if answer.is_error:
            raise VitrineError(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _log_in(self) -> None:
        answer = self.client.post("/auth/token", json={"username": self.user, "password": self.password})
        if answer.is_error:
            raise SettingsError(
                f"Airflow at {self.url} does not accept the user {self.user!r} ({answer.status_code}): set VITRINE_AIRFLOW_USER and "
                f"VITRINE_AIRFLOW_PASSWORD (looked for in {setting_sources(Settings.load().home)})"
            )
        self.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def dags(self) -> set[str]:
        return {d["dag_id"] for d in self.call("GET", "/dags", params={"limit": 100})["dags"]}

    def import_errors(self) -> list[str]:
        found = self.call("GET", "/importErrors")["import_errors"]
        return [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in found]

    def trigger(self, dag: str, conf: dict[str, Any] | None = None) -> str:
        """Triggers a DAG run; returns its id."""
        return self.call("POST", f"/dags/{dag}/dagRuns", json={"logical_date": None, "conf": conf or {}})["dag_run_id"]

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Runs, newest first: dag_run_id, state, run_type, start_date, end_date, …"""
        return self.call("GET", f"/dags/{dag}/dagRuns", params={"order_by": "-id", "limit": 20})["dag_runs"]

    def run(self, dag: str, run_id: str) -> dict[str, Any]:
        return self.call("GET", f"/dags/{dag}/dagRuns/{run_id}")

    def tasks(self, dag: str, run_id: str) -> list[TaskState]:
        found = self.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances", params={"limit": 200})["task_instances"]
        order = sorted(found, key=lambda t: (t["start_date"] or "9", t["task_id"], t["map_index"]))
        return [
            TaskState(t["task_id"], t["map_index"], t["state"] or "waiting", t["duration"], max(1, t.get("try_number") or 1))
            for t in order
        ]

    def result(self, dag: str, run_id: str, task: str) -> Any:
        """The return value of a task."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value"
        return self.call("GET", path, params={"deserialize": "true"})["value"]

    def log(self, dag: str, run_id: str, task: str, attempt: int = 1, map_index: int = -1) -> str:
        """A task's log as text."""
        return "\n".join(self.log_entries(dag, run_id, task, attempt, map_index))

    def log_entries(self, dag: str, run_id: str, task: str, attempt: int = 1, map_index: int = -1) -> list[str]:
        """A task's log as entries, each possibly of several lines."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/logs/{attempt}"
        content = self.call("GET", path, params={"map_index": map_index, "full_content": "true"})["content"]
        return [text for line in content for text in _texts(line)]


def _texts(line: Any) -> list[str]:
    """The lines of one structured log record: its message (with the reason of a skipped task), then the exceptions it carries."""
    if not isinstance(line, dict):
        return [str(line)]
    errors = [f"{e.get('exc_type')}: {e.get('exc_value')}" for e in line.get("error_detail") or []]
    event = str(line.get("event", ""))
    if event == "Skipping task." and line.get("reason"):
        event = f"Skipping task: {line['reason']}"
    return errors if event.startswith("::") and errors else [event, *errors]
