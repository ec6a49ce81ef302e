"""## promote_index: blue-green promotion with validation and automatic rollback

**When**: a new candidate of `product-index` was published; or by hand, from the release board or this page, for one version.

**Story**: every serving replica loads and verifies the candidate in the idle slot (blue or green) beside the live version; sampled
real queries are replayed against both; if required, a person approves the gate report, unless a newer candidate is published meanwhile,
which the next run proposes; then the alias `live` moves, and `previous`
names the rollback target. During the bake the replicas' errors, p99 and recall are monitored: the version is kept, or rolled back
automatically.

A lease (tasks/release/promotion/lease.py) allows one promotion at a time. A killed promotion is finished or undone by the next run.

**When it fails**: the log names the replica or the check, and says whether the version went live. The version that was live before
still is, or is again, unless `flip` names replicas that did not follow: inspect those.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task, teardown
from airflow.sdk.exceptions import AirflowSkipException

from dags.approval import approval
from dags.assets import INDEX
from dags.running import DEFAULTS, fail_without_retry, run_key, step
from dags.superseded_approval import CandidateApproval


@dag(
    schedule=[INDEX],
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"execution_timeout": timedelta(hours=1)},
    description="Puts an index version live on all replicas (blue-green), after a shadow check and with automatic rollback",
    doc_md=__doc__,
    tags=["vitrine", "release"],
    params={
        "version": Param(
            None, type=["null", "string"], title="Version", description="Empty: the candidate", pattern="^[0-9]{0,9}$"
        ),
        "approval": Param(
            "setting", enum=["setting", "yes", "no"], title="Approval", description="setting: the value of VITRINE_APPROVAL"
        ),
    },
)
def promote_index() -> None:
    @task
    @fail_without_retry
    def choose_slot() -> Any:
        from tasks.pipelines import promote_index

        # Without a version the registry's candidate: of several events the run may have been given the oldest, or none.
        plan = promote_index.choose(get_current_context()["params"]["version"] or "", run_key())
        if plan.done:
            raise AirflowSkipException(plan.summary)
        return plan

    @task.branch
    @fail_without_retry
    def ask_or_not() -> str:
        from tasks.pipelines import promote_index

        if not promote_index.needs_approval(get_current_context()["params"]["approval"]):
            return "flip"
        promote_index.release_lease(run_key())
        return "approve"

    plan = choose_slot()
    warmed = step("promote_index.warm", task_id="warm_slot")(plan=plan)
    checked = step("promote_index.shadow", task_id="shadow_check", kind="large")(plan=plan)
    choice = ask_or_not()
    approve = approval(
        "approve",
        subject="Promote index version {{ ti.xcom_pull(task_ids='choose_slot')['version'] }}?",
        body="{{ ti.xcom_pull(task_ids='shadow_check')['text'] }}",
        operator=CandidateApproval,
    )
    flipped = step("promote_index.flip", trigger_rule="none_failed_min_one_success")(plan=plan)
    baked = step("promote_index.bake")(plan=plan, flipped=flipped)
    settled = teardown(step("promote_index.settle"))()
    warmed >> checked >> choice >> [approve, flipped]
    approve >> flipped
    baked >> settled


promote_index()
