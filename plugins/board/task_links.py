"""Buttons on a task's page in Airflow: to the MLflow run, the model version and the data docs that the task made.

A task returns its addresses as `links` = {name: url}; each button shows the address of its own name, and is not there without one.
"""

import json
from typing import Any

from airflow.sdk import BaseOperatorLink


class TaskLink(BaseOperatorLink):
    """The address that a task returned under this link's name."""

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
    """What a task returned, as plain JSON; None when it has not returned yet."""
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
    """An XCom's value as it lies in the database, as plain JSON; None where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
