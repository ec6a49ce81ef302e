"""## promote_index: blue-green, validated, and back again if need be

**When**: a new candidate of `product-index` was published.

**Story**: the idle slot (blue or green) takes the candidate; every serving replica loads and verifies it beside the
running version; sampled queries are replayed against both; only then the alias `live` moves, and `previous` names the
version to go back to.

**When it fails**: `live` still names the old version and shoppers saw nothing. The log names the replica or the check.
"""

from datetime import timedelta

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags.assets import INDEX
from dags.running import DEFAULTS, clear_failure, run_key


@dag(
    schedule=[INDEX],
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(hours=1)},
    doc_md=__doc__,
    tags=["vitrine", "release"],
)
def promote_index() -> None:
    @task
    def choose_slot() -> dict:
        from tasks.steps import promoting

        events = get_current_context()["triggering_asset_events"].get(INDEX, [])
        wanted = [event.extra.get("version", "") for event in events]
        with clear_failure():
            return promoting.choose(wanted[-1] if wanted else "")

    @task
    def warm_slot(plan: dict) -> dict:
        from tasks.steps import promoting

        with clear_failure():
            return promoting.warm(plan)

    @task
    def shadow_check(plan: dict) -> dict:
        from tasks.steps import promoting

        with clear_failure():
            report = promoting.shadow(plan, run_key())
        if not report["passed"]:
            raise AirflowFailException(report["summary"])
        return report

    @task
    def flip(plan: dict) -> dict:
        from tasks.steps import promoting

        with clear_failure():
            return promoting.flip(plan)

    plan = choose_slot()
    warm_slot(plan) >> shadow_check(plan) >> flip(plan)


promote_index()
