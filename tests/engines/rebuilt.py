"""A whole rebuild_index, step by step, without Airflow."""

from tasks.pipelines import common, rebuild_index, register_index, tune_index


def rebuilt(run_key: str) -> str:
    """The steps of the DAG, in its order; the version that they registered and published."""
    snapshot, encoder = common.take_snapshot(run_key), rebuild_index.choose_encoder()
    assert rebuild_index.something_changed(snapshot, encoder)
    embedded = rebuild_index.embed(snapshot, encoder, run_key)
    template = rebuild_index.train_template(encoder, embedded, run_key)
    numbers = rebuild_index.list_shards(template)
    shards = [rebuild_index.build_shard(n, snapshot, embedded, template, run_key) for n in numbers]
    assert shards == [rebuild_index.build_shard(n, snapshot, embedded, template, run_key) for n in numbers], "a retry keeps them"
    tuned = tune_index.tune(snapshot, encoder, template, shards, run_key)
    made = register_index.register_version(snapshot, encoder, embedded, template, shards, tuned, run_key)
    assert made.passed, made.summary
    register_index.publish(made.version)
    return made.version
