"""Shared by the DAGs that ask a person: the task that waits for an answer in the Airflow UI."""

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator

APPROVAL_DAYS = 3


def approval(task_id: str, subject: str, body: str, operator: type[ApprovalOperator] = ApprovalOperator) -> ApprovalOperator:
    """Waits APPROVAL_DAYS days for "Approve", without a worker and over restarts; after "Reject" the tasks that follow are skipped."""
    return operator(
        task_id=task_id, subject=subject, body=body, execution_timeout=None, response_timeout=timedelta(days=APPROVAL_DAYS)
    )
