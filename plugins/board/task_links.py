"""Operator links on a task's page: MLflow run, model version and data docs.

A task returns its addresses as `links` = {name: url}; each button shows the address of its own name, and is not there without one.
"""

import json
from typing import Any

from airflow.sdk import BaseOperatorLink


class TaskLink(BaseOperatorLink):
    """A link whose URL is the entry of this name in the task's returned `links`."""

    name = ""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """ "" when the task returned none. Runs in the API server."""
        found = task_result(ti_key)
        links = found.get("links") if isinstance(found, dict) else None
        url = links.get(self.name, "") if isinstance(links, dict) else ""
        return url if isinstance(url, str) and url.startswith(("http://", "https://")) else ""


class MlflowRun(TaskLink):
    name = "MLflow run"


class ModelVersion(TaskLink):
    name = "Model version"


class DataDocs(TaskLink):
    name = "Data docs"


LINKS = [MlflowRun(), ModelVersion(), DataDocs()]


def task_result(ti_key: Any) -> Any:
    """The return value of a task as plain JSON; None before it returned."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.execute(
            XComModel.get_many(
                key="return_value",
                run_id=ti_key.run_id,
                dag_ids=ti_key.dag_id,
                task_ids=ti_key.task_id,
                map_indexes=ti_key.map_index,
            ).with_only_columns(XComModel.value)
        ).first()
    return None if row is None else as_json(row.value)


def as_json(value: Any) -> Any:
    """An XCom value as stored in the database, decoded as JSON; None when it is not JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
