"""Who is told when a run fails or is late: the log, and the address in VITRINE_ALERT_URL."""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference

log = logging.getLogger(__name__)


def alert_failure(context: Any) -> None:
    """A task has failed for good."""
    from tasks.watch.alerts import send

    task, error = context["task_instance"], context.get("exception")
    send(f"{task.dag_id}.{task.task_id} failed: {error}", task.log_url)


async def alert_late_run(text: str, **kwargs: Any) -> None:
    """A run is not done by its deadline. Called by the triggerer."""
    import asyncio

    from tasks.watch.alerts import send

    await asyncio.to_thread(send, text)


def deadline_alert(limit: timedelta, dag_id: str) -> DeadlineAlert:
    """Tells when a run of the DAG is not done this long after it was queued."""
    text = f"{dag_id}: a run is not done {limit} after it was queued"
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, limit, AsyncCallback(alert_late_run, {"text": text}))


tell_lateness = alert_late_run
"""The name that the deadlines of runs queued before it was renamed hold in Airflow's database."""
