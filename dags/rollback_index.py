"""## rollback_index: make the previous version live on every replica, in seconds

**When**: by hand, from the release board or this page.

**Story**: `live` moves to the previous version, which every replica still holds in its other slot, or to the given version. It does
not wait for a running promotion: that one becomes void and says so.

**When it fails**: the log names the replicas that did not follow; the others already serve the version. No retries: a second
rollback would undo the first.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from dags.running import DEFAULTS, fail_without_retry, run_key


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(minutes=20), "retries": 0},
    doc_md=__doc__,
    tags=["vitrine", "release"],
    params={
        "version": Param(
            None, type=["null", "string"], title="Version", description="Empty: the previous version", pattern="^[0-9]{0,9}$"
        ),
    },
)
def rollback_index() -> None:
    @task
    @fail_without_retry
    def roll_back() -> Any:
        from tasks.pipelines import rollback_index

        return rollback_index.roll_back(run_key(), get_current_context()["params"]["version"] or "")

    roll_back()


rollback_index()
