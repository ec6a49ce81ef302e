"""Client of Airflow's REST API that acts with the user's own token, so Airflow authorises and records each call."""

import os
from collections.abc import Sequence
from typing import Any

import httpx
from fastapi import HTTPException

ORIGIN = "http://airflow.internal"
"""Only names the scheme: the call never leaves the process."""
TAG = "vitrine"
"""The tag of every DAG of this project."""


class AirflowClient:
    """Airflow's /api/v2, called as one user."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON response. An error response of Airflow's is raised with its status and detail."""
        from airflow.api_fastapi.app import API_ROOT_PATH, cached_app

        app = cached_app(apps=os.environ.get("AIRFLOW_API_APPS", "all"))
        root = API_ROOT_PATH.removesuffix("/")
        transport = httpx.ASGITransport(app=app, root_path=root)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers) as client:
            answer = await client.request(method, f"{root}/api/v2{path}", **options)
        if answer.is_error:
            raise HTTPException(answer.status_code, _words(answer))
        found: dict[str, Any] = answer.json()
        return found

    async def trigger(self, dag: str, conf: dict[str, Any], note: str) -> str:
        """Triggers a DAG run; returns its id."""
        body = {"logical_date": None, "conf": conf, "note": note}
        return str((await self.call("POST", f"/dags/{dag}/dagRuns", json=body))["dag_run_id"])

    async def runs(self, dag: str, limit: int) -> list[dict[str, Any]]:
        """The newest runs of a DAG; [] when the DAG does not exist or this user may not see it."""
        try:
            found = await self.call("GET", f"/dags/{dag}/dagRuns", params={"order_by": "-run_after", "limit": limit})
        except HTTPException as refused:
            if refused.status_code in (403, 404):
                return []
            raise
        return [
            {
                "dag": dag, "run": r["dag_run_id"], "state": r["state"], "began": r["start_date"] or r["run_after"], "ended": r["end_date"],
                "by": r.get("triggering_user_name") or r["run_type"], "conf": r.get("conf") or {},
                "note": r.get("note") or "",
            }
            for r in found["dag_runs"]
        ]  # fmt: skip

    async def schedule(self, dags: Sequence[str]) -> list[dict[str, Any]]:
        """When each DAG runs next: its schedule in words, the next start ("" for none), and whether it is paused."""
        try:
            found = await self.call("GET", "/dags", params={"tags": TAG, "limit": 100})
        except HTTPException as refused:
            if refused.status_code == 403:
                return []
            raise
        known = {d["dag_id"]: d for d in found["dags"]}
        return [
            {
                "dag": dag, "description": known[dag]["description"] or "", "schedule": known[dag]["timetable_description"] or "",
                "next": known[dag]["next_dagrun_run_after"] or "", "paused": known[dag]["is_paused"],
            }
            for dag in dags if dag in known
        ]  # fmt: skip

    async def pending_inputs(self, dag: str, run: str) -> list[dict[str, str]]:
        """Human-in-the-loop tasks of a run that await a response: task, subject, and whether it is an approval."""
        found = await self.call("GET", f"/dags/{dag}/dagRuns/{run}/hitlDetails", params={"response_received": "false"})
        return [{"task": h["task_instance"]["task_id"], "subject": h["subject"]} for h in found["hitl_details"]]


def _words(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"Airflow answered {answer.status_code}"
    return detail if isinstance(detail, str) else str(detail)
