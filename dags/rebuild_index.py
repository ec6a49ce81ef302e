"""## rebuild_index: build a new index version from the whole catalogue

**When**: nightly at 02:00 UTC, when a new encoder becomes champion (every product is embedded again), and when `refresh_index` or
`watch_quality` requests it because the live version's deltas have grown too large.

**In**: the catalogue, the champion encoder. **Out**: a version of `product-index` in MLflow, with the alias `candidate` when it
passes its gates (asset: product-index), which triggers `promote_index`.

Changes that hourly versions indexed during the build are carried over before the version is published.

Nothing is built if the catalogue, the encoder, the index settings, and the ranker's weights and rules equal the live version's.

**When it fails**: the log of the failed task states the cause in one sentence. Clear that task: embedded pictures and built shards
are kept. The live version is not touched.
"""

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags.assets import COMPACTION, ENCODER, INDEX
from dags.running import DEFAULTS, fail_without_retry, run_key


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 2 * * *", timezone="UTC"), assets=(ENCODER | COMPACTION)),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["vitrine", "index"],
)
def rebuild_index() -> None:
    @task
    @fail_without_retry
    def check_preconditions() -> dict:
        from tasks.pipelines import preconditions

        return preconditions.check_preconditions(training=False)

    @task
    @fail_without_retry
    def take_snapshot() -> dict:
        from tasks.pipelines import common

        return common.snapshot(run_key())

    @task
    @fail_without_retry
    def choose_encoder() -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.choose_encoder()

    @task.short_circuit
    def something_changed(snapshot: dict, encoder: dict) -> bool:
        from tasks.pipelines import rebuild_index as steps

        return steps.something_changed(snapshot, encoder)

    @task
    @fail_without_retry
    def validate_snapshot(snapshot: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.validate_snapshot(snapshot, run_key())

    @task(retries=3)
    @fail_without_retry
    def embed(snapshot: dict, encoder: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.embed(snapshot, encoder, run_key())

    @task
    @fail_without_retry
    def validate_embeddings(snapshot: dict, embedded: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.validate_embeddings(snapshot, embedded, run_key())

    @task
    @fail_without_retry
    def train_template(encoder: dict, embedded: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.template(encoder, embedded, run_key())

    @task
    def list_shards(template: dict) -> list[int]:
        from tasks.pipelines import rebuild_index as steps

        return steps.shard_numbers(template)

    @task(retries=3)
    @fail_without_retry
    def build_shard(shard: int, snapshot: dict, embedded: dict, template: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.shard(shard, snapshot, embedded, template, run_key())

    @task
    @fail_without_retry
    def tune(snapshot: dict, encoder: dict, template: dict, shards: list[dict]) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.tune(snapshot, encoder, template, list(shards), run_key())

    @task
    @fail_without_retry
    def register_version(snapshot: dict, encoder: dict, embedded: dict, shards: list[dict], tuned: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        return steps.register(snapshot, encoder, embedded, list(shards), tuned, run_key())

    @task
    @fail_without_retry
    def catch_up(registered: dict) -> dict:
        from tasks.pipelines import refresh_index

        return refresh_index.catch_up(registered, run_key())

    @task
    @fail_without_retry
    def load_features(registered: dict) -> dict:
        from tasks.pipelines import publish_features

        return publish_features.load(registered)

    @task(outlets=[INDEX])
    def publish_candidate(registered: dict) -> dict:
        from tasks.pipelines import rebuild_index as steps

        if not registered["passed"]:
            raise AirflowFailException(registered["summary"])
        steps.publish(registered)
        get_current_context()["outlet_events"][INDEX].extra = {"version": registered["version"]}
        return registered

    snapshot, encoder = take_snapshot(), choose_encoder()
    check_preconditions() >> [snapshot, encoder]
    changed = something_changed(snapshot, encoder)
    valid = validate_snapshot(snapshot)
    embedded = embed(snapshot, encoder)
    checked = validate_embeddings(snapshot, embedded)
    template = train_template(encoder, embedded)
    shards = build_shard.partial(snapshot=snapshot, embedded=embedded, template=template).expand(shard=list_shards(template))
    tuned = tune(snapshot, encoder, template, shards)
    changed >> valid >> embedded
    checked >> template
    registered = catch_up(register_version(snapshot, encoder, embedded, shards, tuned))
    publish_candidate(registered)
    load_features(registered)


rebuild_index()
