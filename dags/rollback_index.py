"""## rollback_index: the version before is live again, on every replica, in seconds

**When**: by hand, from the release board or this page.

**Story**: `live` names the version before, which every replica still holds in its other slot; or the version that is given. It waits
for no promotion: one that is under way is void and says so.

**When it fails**: the log names the replicas that did not follow; the others serve the version already. It is not tried again by
itself: going back twice would lead forth again.
"""

from datetime import timedelta

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
            None, type=["null", "string"], title="Version", description="Empty: what was live before", pattern="^[0-9]{0,9}$"
        ),
    },
)
def rollback_index() -> None:
    @task
    @fail_without_retry
    def roll_back() -> dict:
        from tasks.pipelines import promote_index as steps

        return steps.roll_back(run_key(), get_current_context()["params"]["version"] or "")

    roll_back()


rollback_index()
