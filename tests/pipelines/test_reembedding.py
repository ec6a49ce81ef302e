"""A new champion: its price is told before it is paid, and what shoppers get does not stop for it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from serving.contract.manifest import EncoderRef
from tasks.board.embedding import embedding_entry
from tasks.catalog.snapshot import Snapshot
from tasks.pipelines import (
    plan_reembedding,
    promote_index,
    rebuild_index,
    refresh_index,
    register_index,
    rollback_index,
    tune_index,
)
from tasks.pipelines.common import embed_config, settings
from tasks.pipelines.index_records import RegisteredVersion
from tasks.registry import ENCODER_MODEL
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.catalogs import small_catalog
from tests.cli.conftest import run

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def live(mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LiveShop:
    """A shop of 60 products, or as many as the test says, whose pictures are embedded in this process instead of in Spark."""
    monkeypatch.setattr(rebuild_index, "embed_config", lambda *which: replace(embed_config(*which), direct=1000))
    monkeypatch.setattr("tests.registered.small_catalog", partial(small_catalog, photos=1))
    return LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch, getattr(request, "param", 60))


def crown(live: LiveShop, seed: int, dim: int) -> EncoderRef:
    live.registry.set_alias(ENCODER_MODEL, "champion", live.shop.encoder(seed, dim))
    return rebuild_index.choose_encoder()


def finish(snapshot: Snapshot, encoder: EncoderRef, key: str) -> RegisteredVersion:
    """The steps of rebuild_index after `embed`, which is called again and finds its own result."""
    embedded = rebuild_index.embed(snapshot, encoder, key)
    template = rebuild_index.train_template(encoder, embedded, key)
    shards = [rebuild_index.build_shard(n, snapshot, embedded, template, key) for n in rebuild_index.list_shards(template)]
    tuned = tune_index.tune(snapshot, encoder, template, shards, key)
    registered = register_index.register_version(snapshot, encoder, embedded, template, shards, tuned, key)
    assert registered.passed, registered.summary
    complete = refresh_index.catch_up(registered, key)
    register_index.publish(complete.version)
    return complete


def encoder_of(live: LiveShop, version: str) -> tuple[str, int]:
    ref = live.registry.index_manifest(version).encoder
    return ref.version, ref.dim


@pytest.mark.parametrize("live", [240], indirect=True)
def test_changes_between_embedding_and_flip_reach_shoppers_before_and_after_it_and_dimensions_do_not_mix(live: LiveShop) -> None:
    old = encoder_of(live, live.base)
    encoder = crown(live, seed=1, dim=32)
    snapshot = live.shop.snapshot("nightly")
    rebuild_index.embed(snapshot, encoder, "nightly")
    for half, minute in ((0, 1), (1, 2)):  # before the new version is registered, and after it is published
        numbers = range(10 * half, 10 * half + 10)
        live.send(
            *(live.delete(n, minute) for n in numbers),
            *(live.upsert(100 + n, minute) for n in numbers),
            *(live.upsert(300 + n, minute, seed=300 + n) for n in numbers),
        )
        hour = live.refresh(f"hour-{half}")
        assert hour.passed, hour.summary
        if not half:
            promote_index.promote(hour.version, "promote-hour", bake_s=0)
            assert_changed(live, hour.version, 10)
            assert encoder_of(live, hour.version) == old, "shoppers get them at once, by the former encoder"
            built = finish(snapshot, encoder, "nightly")
            assert built.version != hour.version
    promote_index.promote(hour.version, "promote-night", bake_s=0)
    assert_changed(live, hour.version, 20)
    assert encoder_of(live, hour.version) == (encoder.version, 32)

    back = rollback_index.roll_back("back").version
    assert encoder_of(live, back) == old
    live.send(live.upsert(50, 3))
    after = live.refresh("hour-back")
    assert after.passed, after.summary
    assert encoder_of(live, after.version) == old, "16 numbers go on top of 16"
    found = assert_changed(live, after.version, 20)
    assert found["p050"]["price"] == 103.0


def assert_changed(live: LiveShop, version: str, each: int) -> dict[str, dict]:
    """What a version holds (found checks every segment's dimension): `each` deletes, price changes and new products."""
    found = live.found(version)
    assert not [n for n in range(each) if f"p{n:03d}" in found]
    assert {found[f"p{100 + n}"]["price"] for n in range(each)} <= {101.0, 102.0}
    assert {f"p{300 + n}" for n in range(each)} <= set(found)
    assert len(found) == 240
    assert {len(row["vector"]) for row in found.values()} == {encoder_of(live, version)[1]}
    return found


def test_the_price_is_told_from_a_sample_and_then_from_what_was_measured(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reembedding, "MEASURED_PICTURES", 50)
    monkeypatch.setenv("VITRINE_APPROVE_HOURS", "1e-9")
    assert embedding_entry(live.registry) == {}
    snapshot, encoder = live.shop.snapshot("nightly"), crown(live, seed=1, dim=16)
    first = plan_reembedding.plan_reembedding(snapshot, encoder, "nightly")
    assert (first.to_embed, first.stored, first.needs_approval) == (60, 0, True)
    assert plan_reembedding.replaced_while_waiting(encoder.version) == ""
    assert plan_reembedding.replaced_while_waiting("99").startswith(f"encoder version {encoder.version} became champion before ")
    assert "by 2 workers on this machine" in first.pace.source
    entry = embedding_entry(live.registry)
    assert (entry["state"], entry["to_embed"], entry["done"]) == ("asking", 60, 0)
    rebuild_index.embed(snapshot, encoder, "nightly")
    entry = embedding_entry(live.registry)
    assert (entry["state"], entry["done"], entry["left_s"]) == ("done", 60, 0)
    again = plan_reembedding.plan_reembedding(snapshot, encoder, "again")
    assert (again.to_embed, again.stored, again.needs_approval) == (0, 60, False)
    assert plan_reembedding.recorded_pace(live.registry, crown(live, 2, 16), embed_config(settings(), 2)) is None
    known = plan_reembedding.recorded_pace(live.registry, encoder, embed_config(settings(), 2))
    assert known is not None
    rebuild_index.embed(snapshot, encoder, "nightly")  # cleared and run again: it finds its result, which says nothing of a pace
    assert plan_reembedding.recorded_pace(live.registry, encoder, embed_config(settings(), 2)) == known
    assert known.source.startswith("measured over 60 pictures by run nightly on 20")
    live.shop.point(live=live.base)
    status, told = run("encoder", "plan", "champion", "--json")
    assert status == 0, told
    assert json.loads(told[told.index("{") :])["to_embed"] == 60


def test_a_run_that_embeds_tells_how_far_it_is(live: LiveShop) -> None:
    with live.registry.run(
        "indexes", "night", "index night", {"embed.plan": json.dumps({"to_embed": 100, "needs_approval": True})}
    ) as told:
        report = rebuild_index.progress_report(told)
        report(20, 100)  # of an attempt that was killed
        assert embedding_entry(live.registry)["images_per_s"] == 0
        report(25, 100)
        entry = embedding_entry(live.registry)
        assert (entry["state"], entry["done"]) == ("embedding", 25)
        assert entry["left_s"] == pytest.approx(75 / entry["images_per_s"])
