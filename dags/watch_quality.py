"""## watch_quality: monitor the quality of the live version

**When**: hourly, at half past.

**In**: the live version, real queries sampled by the replicas, their metrics. **Out**: figures and plots in MLflow (experiment
`watch`, one run per index version): recall against exact search, drift of vectors and queries, freshness, cache hit rates, cost.
When the live version's deltas are too large, it requests a rebuild (asset: index-compaction).

**When it fails**: a check failed; the message names it with its value, and is sent to `VITRINE_ALERT_URL`. Nothing is changed
automatically: roll back with the board or `vitrine release rollback`, or rebuild.
"""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags.assets import COMPACTION
from dags.running import DEFAULTS, step


@dag(
    schedule=CronTriggerTimetable("30 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(minutes=30)},
    description="Measures the live version's recall, drift, freshness and cost, hourly",
    doc_md=__doc__,
    tags=["vitrine", "release"],
)
def watch_quality() -> None:
    @task(outlets=[COMPACTION])
    def ask_for_compaction(report: dict) -> str:
        if not report["compaction"]:
            raise AirflowSkipException("the live version is close enough to its base")
        get_current_context()["outlet_events"][COMPACTION].extra = {"version": report["version"], "why": report["compaction"]}
        return report["compaction"]

    @task(retries=0)
    def judge(report: dict) -> str:
        if not report["passed"]:
            raise AirflowFailException(report["summary"])
        return report["summary"]

    report = step("watch_quality.measure", task_id="look", kind="large")()
    ask_for_compaction(report)
    judge(report)


watch_quality()
