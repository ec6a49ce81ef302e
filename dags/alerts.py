"""Failure and deadline alerts: written to the log and posted to VITRINE_ALERT_URL."""

import logging
from typing import Any

from dags.credentials import read_connections

log = logging.getLogger(__name__)


def alert_failure(context: Any) -> None:
    """`on_failure_callback`: alerts when a task has failed and has no retries left."""
    from tasks.watch.alerts import send

    read_connections()
    task, error = context["task_instance"], context.get("exception")
    send(f"{task.dag_id}.{task.task_id} failed: {error}", task.log_url)


async def alert_late_run(text: str, **kwargs: Any) -> None:
    """Deadline callback, run by the triggerer: alerts when a run missed its deadline.

    Of runs queued by earlier versions: no DAG has a deadline, as Airflow 3.3.2 cannot clear a task of a run that has one (TypeError
    in `_recalculate_dagrun_queued_at_deadlines`, a 500 in the UI), and clearing the red task is how a rebuild goes on.
    """
    import asyncio

    from tasks.watch.alerts import send

    await asyncio.to_thread(send, text)


tell_lateness = alert_late_run
"""The name that the deadlines of runs queued before it was renamed hold in Airflow's database."""
