"""## rebuild_index: build a new index version from the whole catalogue

**When**: nightly at 02:00 UTC, when a new encoder becomes champion (every product is embedded again), and when `refresh_index` or
`watch_quality` requests it because the live version's deltas have grown too large.

**In**: the catalogue, the champion encoder. **Out**: a version of `product-index` in MLflow, with the alias `candidate` when it
passes its gates (asset: product-index), which triggers `promote_index`.

Changes that hourly versions indexed during the build are carried over before the version is published.

Before it embeds, `plan_reembedding` tells pictures, hours, cost and bytes; above `VITRINE_APPROVE_HOURS` a person approves them here,
unless another encoder becomes champion meanwhile, which the next run plans for.

Nothing is built if the catalogue, the encoder, the index settings, and the ranker's weights and rules equal the live version's.

**When it fails**: the log of the failed task states the cause in one sentence. Clear that task: embedded pictures and built shards
are kept. After a failed gate mend the cause and trigger a new run instead: the version keeps its verdict. The live version is not
touched.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, TaskGroup, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags.approval import approval
from dags.assets import COMPACTION, ENCODER, INDEX
from dags.running import DEFAULTS, fail_without_retry, step
from dags.superseded_approval import EmbeddingApproval


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 2 * * *", timezone="UTC"), assets=(ENCODER | COMPACTION)),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    description="Builds a new index version from the whole catalogue, nightly or for a new encoder",
    doc_md=__doc__,
    tags=["vitrine", "index"],
)
def rebuild_index() -> None:
    @task(outlets=[INDEX])
    @fail_without_retry
    def publish_candidate(registered: dict) -> Any:
        from tasks.pipelines import register_index

        if not registered["passed"]:
            raise AirflowFailException(registered["summary"])
        register_index.publish(registered["version"])
        get_current_context()["outlet_events"][INDEX].extra = {"version": registered["version"]}
        return registered

    @task.branch
    @fail_without_retry
    def ask_or_not(planned: dict) -> str:
        return "approve_embedding" if planned["needs_approval"] else "agreed"

    with TaskGroup("inputs", prefix_group_id=False, tooltip="the catalogue and the encoder of this version"):
        usable = step("preconditions.check_preconditions")(training=False)
        snapshot = step("common.take_snapshot")()
        encoder = step("rebuild_index.choose_encoder")()
        changed = step("rebuild_index.something_changed", task.short_circuit)(snapshot=snapshot, encoder=encoder)
        valid = step("validate_index.validate_snapshot", kind="large")(snapshot=snapshot)
        usable >> [snapshot, encoder]
        changed >> valid

    with TaskGroup("vectors", prefix_group_id=False, tooltip="a vector of every product, of this encoder"):
        planned = step("plan_reembedding.plan_reembedding", kind="spark")(snapshot=snapshot, encoder=encoder)
        approve = approval(
            "approve_embedding",
            subject="{{ ti.xcom_pull(task_ids='plan_reembedding')['summary'] }}",
            body="{{ ti.xcom_pull(task_ids='plan_reembedding')['text'] }}",
            operator=EmbeddingApproval,
        )
        agreed = EmptyOperator(task_id="agreed", trigger_rule="none_failed_min_one_success")
        long = {"retries": 3, "execution_timeout": timedelta(days=7)}
        embedded = step("rebuild_index.embed", kind="spark", **long)(snapshot=snapshot, encoder=encoder)
        checked = step("validate_index.validate_embeddings", kind="large")(snapshot=snapshot, embedded=embedded)
        valid >> planned
        ask_or_not(planned) >> [approve, agreed]
        approve >> agreed >> embedded

    with TaskGroup("shards", prefix_group_id=False, tooltip="one base segment per shard, and the search parameters"):
        template = step("rebuild_index.train_template", kind="large")(encoder=encoder, embedded=embedded)
        checked >> template
        parts = {"snapshot": snapshot, "embedded": embedded, "template": template}
        build = step("rebuild_index.build_shard", kind="large", retries=3).partial(**parts)
        shards = build.expand(number=step("rebuild_index.list_shards")(template=template))
        tuned = step("tune_index.tune", kind="large")(snapshot=snapshot, encoder=encoder, template=template, shards=shards)

    with TaskGroup("release", prefix_group_id=False, tooltip="gates, and the changes made meanwhile"):
        registered = step("register_index.register_version", kind="large")(encoder=encoder, shards=shards, tuned=tuned, **parts)
        complete = step("refresh_index.catch_up", kind="large")(registered=registered)
        step("publish_features.load", task_id="load_features")(registered=complete)
        publish_candidate(complete)


rebuild_index()
