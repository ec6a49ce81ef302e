"""Failure and deadline alerts: written to the log and posted to VITRINE_ALERT_URL."""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference

log = logging.getLogger(__name__)


def alert_failure(context: Any) -> None:
    """`on_failure_callback`: alerts when a task has failed and has no retries left."""
    from tasks.watch.alerts import send

    task, error = context["task_instance"], context.get("exception")
    send(f"{task.dag_id}.{task.task_id} failed: {error}", task.log_url)


async def alert_late_run(text: str, **kwargs: Any) -> None:
    """Deadline callback, run by the triggerer: alerts when a run missed its deadline."""
    import asyncio

    from tasks.watch.alerts import send

    await asyncio.to_thread(send, text)


def deadline_alert(limit: timedelta, dag_id: str) -> DeadlineAlert:
    """A deadline that alerts when a run of the DAG has not finished `limit` after it was queued."""
    text = f"{dag_id}: a run is not done {limit} after it was queued"
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, limit, AsyncCallback(alert_late_run, {"text": text}))


tell_lateness = alert_late_run
"""The name that the deadlines of runs queued before it was renamed hold in Airflow's database."""
