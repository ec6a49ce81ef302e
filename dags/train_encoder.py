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

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.assets import ENCODER
from dags.running import DEFAULTS, fail_without_retry, run_key


@dag(
    schedule=CronTriggerTimetable("0 3 * * 0", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["vitrine", "encoder"],
    params={
        "preset": Param(None, type=["null", "string"], title="Preset", description="Empty: the setting VITRINE_ENCODER_PRESET"),
        "epochs": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Epochs",
            description="Passes over the train photos, for teacher and student alike. Empty: the preset's steps",
        ),
        "alpha": Param(
            None,
            type=["null", "number"],
            minimum=0,
            maximum=1,
            title="Alpha",
            description="Share of the student's own task in its loss; the rest imitates the teacher. Empty: the preset's",
        ),
        "photo_days": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            title="Data window",
            description="Train photos of so many days up to the newest (needs taken_at); 0: all. Empty: the preset's",
        ),
        "force": Param(False, type="boolean", title="Train again", description="Even if it was trained before"),
    },
)
def train_encoder() -> None:
    @task
    @fail_without_retry
    def check_preconditions() -> dict:
        from tasks.pipelines import preconditions

        return preconditions.check_preconditions(training=True)

    @task
    @fail_without_retry
    def take_snapshot() -> dict:
        from tasks.pipelines import common

        return common.snapshot(run_key())

    @task
    @fail_without_retry
    def plan_training(snapshot: dict) -> dict:
        from tasks.pipelines import train_encoder as steps

        return steps.plan(snapshot, dict(get_current_context()["params"]), run_key())

    @task.branch
    def train_or_reuse(plan: dict) -> str:
        return "judge" if plan["existing"] else "train_teacher"

    @task(execution_timeout=timedelta(days=2), retries=2)
    @fail_without_retry
    def train_teacher(snapshot: dict, plan: dict) -> dict:
        from tasks.pipelines import train_encoder as steps

        return steps.teacher(snapshot, plan, run_key())

    @task(execution_timeout=timedelta(days=2), retries=2)
    @fail_without_retry
    def distil_student(snapshot: dict, plan: dict, teacher: dict) -> dict:
        from tasks.pipelines import train_encoder as steps

        return steps.student(snapshot, plan, teacher, run_key())

    @task
    @fail_without_retry
    def export_encoder(snapshot: dict, plan: dict, teacher: dict, student: dict) -> str:
        from tasks.pipelines import train_encoder as steps

        return steps.export(snapshot, plan, teacher, student, run_key())

    @task(trigger_rule="none_failed_min_one_success")
    @fail_without_retry
    def judge(snapshot: dict, plan: dict, exported: str | None) -> dict:
        from tasks.pipelines import train_encoder as steps

        return steps.judge(snapshot, plan["existing"] or exported, run_key())

    @task(outlets=[ENCODER])
    @fail_without_retry
    def promote_champion(decision: dict) -> dict:
        from tasks.pipelines import train_encoder as steps

        if not decision["promote"]:
            raise AirflowSkipException(decision["summary"])
        promoted = steps.promote(decision, run_key())
        if not promoted["promoted"]:
            raise AirflowSkipException(promoted["summary"])
        get_current_context()["outlet_events"][ENCODER].extra = {"version": decision["version"]}
        return decision

    snapshot = take_snapshot()
    check_preconditions() >> snapshot
    plan = plan_training(snapshot)
    choice = train_or_reuse(plan)
    teacher = train_teacher(snapshot, plan)
    student = distil_student(snapshot, plan, teacher)
    exported = export_encoder(snapshot, plan, teacher, student)
    decision = judge(snapshot, plan, exported)
    choice >> [teacher, decision]
    promote_champion(decision)


train_encoder()
