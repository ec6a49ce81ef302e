"""## collect_garbage: delete what no retained version needs

**When**: daily at 05:00 UTC, or by hand with a form; with `delete` off it is a dry run.

**In**: the versions of `product-index` and everything they reference. **Out**: index versions beyond retention are removed from the
registry; files, snapshots, vectors and caches unreachable from retained versions are deleted. Versions with an alias (`live`,
`previous`, …) and the newest ones (`VITRINE_KEEP_VERSIONS`) are retained, with every segment they reference, whichever run made it.

**When it fails**: nothing that is needed was deleted. The log names the cause, such as an unreadable manifest.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task

from dags.running import DEFAULTS, fail_without_retry, run_key


@dag(
    schedule=CronTriggerTimetable("0 5 * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(hours=2)},
    doc_md=__doc__,
    tags=["vitrine", "release"],
    params={
        "delete": Param(True, type="boolean", title="Delete", description="Off: a dry run"),
        "versions": Param(
            0, type="integer", minimum=0, title="Versions to keep", description="0: the setting VITRINE_KEEP_VERSIONS"
        ),
    },
)
def collect_garbage() -> None:
    @task
    @fail_without_retry
    def plan_garbage() -> Any:
        from tasks.pipelines import collect_garbage

        return collect_garbage.plan(run_key(), get_current_context()["params"]["versions"])

    @task.short_circuit
    def something_to_delete(planned: dict) -> bool:
        return bool(planned["things"]) and get_current_context()["params"]["delete"]

    @task
    @fail_without_retry
    def delete_garbage() -> Any:
        from tasks.pipelines import collect_garbage

        return collect_garbage.delete(run_key(), get_current_context()["params"]["versions"])

    planned = plan_garbage()
    something_to_delete(planned) >> delete_garbage()


collect_garbage()
