"""## train_encoder: retrain, distil, export, and promote only an improvement

**When**: weekly, or by hand with the form's parameters.

**In**: the catalogue with its labelled photos. **Out**: a version of `product-encoder` in MLflow with the alias `challenger`, and
`champion` if it passes its gates against the current champion on the same photos (asset: product-encoder).

A training with the same data and recipe is not repeated: its version is evaluated as it is. Moving the alias `champion` by hand
takes precedence: a replaced version is not promoted again automatically, nor is one that was evaluated against another champion.
With several GPUs, one process trains on each.

**When it fails**: the log of the failed task states the cause in one sentence. Clear that task: finished steps are kept, and
training resumes from its last checkpoint. Serving is not affected.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.assets import ENCODER
from dags.encoder_form import PARAMS
from dags.running import DEFAULTS, fail_without_retry, run_key, step


@dag(
    schedule=CronTriggerTimetable("0 3 * * 0", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    description="Trains and distils the encoder weekly, and makes it champion only if it is an improvement",
    doc_md=__doc__,
    tags=["vitrine", "encoder"],
    params=PARAMS,
)
def train_encoder() -> None:
    @task
    @fail_without_retry
    def check_preconditions() -> Any:
        from tasks.pipelines import preconditions

        return preconditions.check_preconditions(training=get_current_context()["params"]["training"] != "none")

    @task
    @fail_without_retry
    def plan_training(snapshot: dict) -> Any:
        from tasks.catalog.snapshot import Snapshot
        from tasks.pipelines import train_encoder

        return train_encoder.plan(Snapshot.from_json(snapshot), dict(get_current_context()["params"]), run_key())

    @task.branch
    def train_or_reuse(plan: dict) -> str:
        return "judge" if plan["existing"] else "train_teacher"

    @task(outlets=[ENCODER])
    @fail_without_retry
    def promote_champion(decision: dict) -> Any:
        from tasks.pipelines import train_encoder
        from tasks.pipelines.encoder_records import ChampionDecision

        if not decision["promote"]:
            raise AirflowSkipException(decision["summary"])
        move = train_encoder.promote_champion(ChampionDecision.from_json(decision), run_key())
        if not move.promoted:
            raise AirflowSkipException(move.summary)
        get_current_context()["outlet_events"][ENCODER].extra = {"version": move.version}
        return decision

    training = {"execution_timeout": timedelta(days=2), "retries": 2}
    usable = check_preconditions()
    snapshot = step("common.take_snapshot")()
    plan = plan_training(snapshot)
    choice = train_or_reuse(plan)
    teacher = step("train_encoder.train_teacher", kind="gpu", **training)(snapshot=snapshot, plan=plan)
    student = step("train_encoder.distil_student", kind="gpu", **training)(snapshot=snapshot, plan=plan, teacher=teacher)
    exported = step("train_encoder.export_encoder", kind="large")(snapshot=snapshot, plan=plan, teacher=teacher, student=student)
    decision = step("train_encoder.judge", kind="large", trigger_rule="none_failed_min_one_success")(
        snapshot=snapshot, plan=plan, exported=exported
    )
    usable >> snapshot
    choice >> [teacher, decision]
    promote_champion(decision)


train_encoder()
