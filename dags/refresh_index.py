"""## refresh_index: index the last hour's changes as a small version on top of the newest one

**When**: hourly; or by hand with the form's parameters. `vitrine stream` does the same every minute.

**In**: the changes pending in the queue that `VITRINE_CHANGES` names (outbox, SQS, Kafka, or what comparing the catalogue finds),
priority products first. **Out**: a version of `product-index` that references its parent's segments and adds a delta and tombstones
per touched shard, with the alias
`candidate` when it passes its gates (asset: product-index), which triggers `promote_index`. Messages are acknowledged once such a
version is registered. Other ranker weights or rules (the file that `VITRINE_RANKER` names) make a version too, with or without
changes. Changes beyond the limits wait for the next run; log and result state how many. Dead letters and quarantined products are
reported in the run's note with the first reason; the release board lists both, and the pending changes.

If `VITRINE_REDIS_URL` is set, price, stock and popularity of changed products are written to the feature store immediately, and the
version's features before it goes live; an unavailable Redis fails only those tasks.

When the deltas exceed their limits, the version requests a rebuild (asset: index-compaction), which triggers `rebuild_index`.

**When it fails**: the log of the failed task states the cause in one sentence. The changes stay in the queue: clear the task, or
leave them to the next run, as after a failed gate. The live version is not touched.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.assets import COMPACTION, INDEX
from dags.running import DEFAULTS, fail_without_retry, run_key, step


@dag(
    schedule=CronTriggerTimetable("17 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(hours=2)},
    description="Adds the last hour's catalogue changes to the index as a small new version",
    doc_md=__doc__,
    tags=["vitrine", "index"],
    params={
        "changes": Param(0, type="integer", minimum=0, title="Most changes", description="0: VITRINE_REFRESH_CHANGES"),
        "minutes": Param(0, type="number", minimum=0, title="Most minutes", description="0: VITRINE_REFRESH_MINUTES"),
    },
)
def refresh_index() -> None:
    @task
    @fail_without_retry
    def drain_changes() -> Any:
        from tasks.pipelines import drain_changes

        context = get_current_context()
        plan = drain_changes.drain(run_key(), context["params"]["changes"], context["params"]["minutes"])
        if not plan.due:
            context["ti"].xcom_push("return_value", plan.to_json())  # for the note on the run, also when nothing is made
            raise AirflowSkipException(plan.summary)
        return plan

    @task(outlets=[INDEX])
    @fail_without_retry
    def publish_candidate(registered: dict) -> Any:
        from tasks.pipelines import refresh_index
        from tasks.pipelines.index_records import RegisteredVersion

        if not refresh_index.publish(RegisteredVersion.from_json(registered)):
            raise AirflowSkipException("a version on a newer snapshot is the candidate; the next refresh carries these changes")
        get_current_context()["outlet_events"][INDEX].extra = {"version": registered["version"]}
        return registered

    @task(outlets=[COMPACTION])
    def ask_for_rebuild(registered: dict) -> None:
        if not registered["compaction_due"]:
            raise AirflowSkipException("the deltas are small enough")
        get_current_context()["outlet_events"][COMPACTION].extra = {"why": registered["compaction_due"]}

    plan = drain_changes()
    embedded = step("refresh_index.embed", task_id="embed_changes", kind="spark", retries=3)(plan=plan)
    registered = step("refresh_index.register", task_id="register_version", kind="large")(plan=plan, embedded=embedded)
    step("publish_features.refresh", task_id="refresh_features")(plan=plan)
    step("publish_features.load", task_id="load_features")(registered=registered)
    acknowledged = step("refresh_index.acknowledge", retries=3)(plan=plan, registered=registered, embedded=embedded)
    acknowledged >> publish_candidate(registered) >> ask_for_rebuild(registered)


refresh_index()
