"""## collect_garbage: what nothing needs any more goes

**When**: daily at 05:00 UTC, or by hand with a form; `delete` off only says what would go.

**In**: the versions of `product-index` and what they reach. **Out**: index versions beyond retention leave the registry; files,
snapshots, vectors and caches that no kept version reaches are deleted. `live`, `previous`, whatever else an alias names, and the
newest versions stay (`VITRINE_KEEP_VERSIONS`), with every segment they reach, whichever run made it.

**When it fails**: nothing that is needed is gone. The log says what stood in the way, such as a manifest that cannot be read.
"""

from datetime import timedelta

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
        "delete": Param(True, type="boolean", title="Delete", description="Off: a dry run that only says what would go"),
        "versions": Param(0, type="integer", minimum=0, title="Versions to keep", description="0: as VITRINE_KEEP_VERSIONS says"),
    },
)
def collect_garbage() -> None:
    @task
    @fail_without_retry
    def plan_garbage() -> dict:
        from tasks.pipelines import collect_garbage as steps

        return steps.plan(run_key(), get_current_context()["params"]["versions"])

    @task.short_circuit
    def something_to_delete(planned: dict) -> bool:
        return bool(planned["things"]) and get_current_context()["params"]["delete"]

    @task
    @fail_without_retry
    def delete_garbage() -> dict:
        from tasks.pipelines import collect_garbage as steps

        return steps.delete(run_key(), get_current_context()["params"]["versions"])

    planned = plan_garbage()
    something_to_delete(planned) >> delete_garbage()


collect_garbage()
