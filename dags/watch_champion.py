"""## watch_champion: an encoder that was made champion by hand is noticed

**When**: every 15 minutes. MLflow tells Airflow at once by a signed message (`vitrine webhook`); this is for the message
that got lost, and for where none is set up.

**In**: the alias `champion` of `product-encoder`, and the version that Airflow was told of last. **Out**: where the two
differ, the asset event of the encoder, which starts `rebuild_index`: every product is embedded again.

**When it fails**: MLflow did not answer. Nothing is lost: the next run looks again.
"""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.assets import ENCODER
from dags.running import DEFAULTS, fail_without_retry


@dag(
    schedule=CronTriggerTimetable("7-59/15 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["vitrine", "encoder"],
)
def watch_champion() -> None:
    @task(inlets=[ENCODER], outlets=[ENCODER])
    @fail_without_retry
    def announce_moved_champion() -> dict:
        from tasks.pipelines import watch_champion as steps

        context = get_current_context()

        def told() -> str:
            events = context["inlet_events"][ENCODER]
            return str(events[-1].extra.get("version", "")) if len(events) else ""

        moved = steps.moved_champion(told)
        if not moved["version"]:
            raise AirflowSkipException(moved["summary"])
        context["outlet_events"][ENCODER].extra = {"version": moved["version"], "told_by": "watch_champion"}
        return moved

    announce_moved_champion()


watch_champion()
