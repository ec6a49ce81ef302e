"""## watch_champion: detect a champion that was set by hand

**When**: every 15 minutes. MLflow normally notifies Airflow at once by a signed webhook (`vitrine webhook`); this catches lost
messages, and installations without the webhook.

**In**: the alias `champion` of `product-encoder`, and the version of the last asset event. **Out**: if the two differ, the asset
event of the encoder, which triggers `rebuild_index`: every product is embedded again.

**When it fails**: MLflow did not respond. Nothing is lost: the next run checks again.
"""

from datetime import timedelta
from typing import Any

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
    def announce_moved_champion() -> Any:
        from tasks.pipelines import watch_champion

        context = get_current_context()

        def announced() -> str:
            events = context["inlet_events"][ENCODER]
            return str(events[-1].extra.get("version", "")) if len(events) else ""

        moved = watch_champion.moved_champion(announced)
        if not moved.version:
            raise AirflowSkipException(moved.summary)
        context["outlet_events"][ENCODER].extra = {"version": moved.version, "told_by": "watch_champion"}
        return moved

    announce_moved_champion()


watch_champion()
