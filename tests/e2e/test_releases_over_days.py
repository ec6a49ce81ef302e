"""Three nights and six hours of a shop over the real Airflow, MLflow and two replicas: exactly the good versions go live.

An encoder is replaced, and versions are made that must not get through.
"""

import time

import httpx
import pytest

from serving.contract.files import describe
from serving.contract.manifest import IndexManifest
from tasks.registry import INDEX_MODEL, INDEX_PATH
from tests.e2e.stack import PRODUCTS, Stack, until

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Stack:
    """A first version is live."""
    if not stack.aliases().get("live"):
        stack.night()
    stack.quiet()
    return stack


def refused(stack: Stack, version: str) -> str:
    """Promotes a version that must not go live; gives the sentence of the task that refused it."""
    before, serving = stack.aliases(), stack.serving()
    run_id, state = stack.run("promote_index", version=version)
    assert state == "failed", stack.states("promote_index", run_id)
    states = stack.states("promote_index", run_id)
    assert states["flip"] in ("upstream_failed", "skipped")
    after = stack.aliases()
    assert {a: v for a, v in after.items() if a != "candidate"} == {a: v for a, v in before.items() if a != "candidate"}
    assert stack.serving() == serving
    red = next(task for task, state in states.items() if state == "failed")
    return stack.airflow.log("promote_index", run_id, red)


def poisoned_night(stack: Stack, **encoder: int) -> tuple[str, str]:
    """A night that another champion fails; the one before is champion again. What was live, and the run."""
    stack.quiet()
    live = stack.aliases()["live"]
    champion = stack.registry.require_alias("product-encoder", "champion").version
    stack.crown(**encoder)
    run_id, state = stack.run("rebuild_index")
    stack.registry.set_alias("product-encoder", "champion", champion)
    assert state == "failed"
    return live, run_id


def register(stack: Stack, manifest: IndexManifest, run_id: str, name: str) -> str:
    """Registers a manifest as a version that claims to have passed."""
    path = stack.settings.home / f"{name}.json"
    path.write_text(manifest.model_dump_json())
    target = path.parent / name / "manifest.json"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    stack.registry.client.log_artifact(run_id, str(target), INDEX_PATH)
    return stack.registry.register(INDEX_MODEL, run_id, INDEX_PATH, {"verdict": "passed"}, name).version


def test_an_hour_with_inserts_updates_and_deletes_goes_live(shop: Stack) -> None:
    shop.catalogue.change({100: 1100, 101: 1101, 3: 3}, deletes=(7, 8))
    shop.rank_by({"rules": {"pin": [{"product_id": "p020", "place": 3}]}})
    version = shop.hour()
    pinned = httpx.get(f"{shop.settings.serving_urls[0]}/v1/search?product_id=p005&explain=true", trust_env=False).json()
    assert [(r["product_id"], r["notes"]) for r in pinned["results"]][2] == ("p020", ["pinned at place 3"])
    manifest = shop.registry.index_manifest(version)
    assert manifest.counts.servable == PRODUCTS
    assert all(g.passed for g in manifest.gates)
    assert {"lost", "churn", "photo_recall", "reconciled"} <= {g.name for g in manifest.gates}
    found = shop.registry.version(INDEX_MODEL, version)
    assert found.tags["bake"].startswith("kept")
    assert "Made by [refresh_index" in found.description
    assert "MLflow run" in found.description


def test_a_promotion_waits_for_a_person_and_their_no_leaves_everything_as_it_was(shop: Stack) -> None:
    before = shop.aliases()
    run_id = asked(shop, before["previous"])
    (waiting,) = shop.airflow.call("GET", f"/dags/promote_index/dagRuns/{run_id}/hitlDetails")["hitl_details"]
    assert waiting["subject"] == f"Promote index version {before['previous']}?"
    assert "| photo_recall | passed |" in waiting["body"]
    assert "Every replica has loaded it. Shadow check:" in waiting["body"]
    answer(shop, run_id, "Reject")
    assert shop.finished("promote_index", run_id) == "success"
    states = shop.states("promote_index", run_id)
    assert (states["flip"], states["bake"], states["settle"]) == ("skipped", "skipped", "success")
    assert shop.aliases() == before
    assert shop.serving() == [before["live"]] * 2


def test_their_yes_puts_it_live_and_rollback_index_takes_it_back(shop: Stack) -> None:
    live, previous = shop.aliases()["live"], shop.aliases()["previous"]
    run_id = asked(shop, previous)
    answer(shop, run_id, "Approve")
    assert shop.finished("promote_index", run_id) == "success"
    assert shop.serving() == [previous] * 2
    assert (shop.aliases()["live"], shop.aliases()["previous"]) == (previous, live)
    run_id, state = shop.run("rollback_index")
    assert state == "success"
    assert shop.serving() == [live] * 2
    done = shop.airflow.result("rollback_index", run_id, "roll_back")
    assert (done["version"], done["before"]) == (live, previous)


def test_a_version_that_failed_a_gate_is_not_built_into_anything(shop: Stack) -> None:
    """A third of the products deleted at once is refused by the gate `lost`; their return makes the hour good again."""
    shop.quiet()
    before, live = set(shop.catalogue.ids), shop.aliases()["live"]
    numbers = sorted(int(p[1:]) for p in before)[: PRODUCTS * 3 // 10]
    shop.catalogue.change({}, deletes=tuple(numbers))
    run_id, state = shop.run("refresh_index")
    assert state == "failed"
    assert "lost: share of the live version's products that are gone (18 of 60)" in shop.airflow.log(
        "refresh_index", run_id, "acknowledge"
    )
    shop.quiet()
    assert shop.aliases()["live"] == live
    assert shop.serving() == [live] * 2
    shop.catalogue.change({n: n for n in numbers})
    assert shop.catalogue.ids == before
    shop.hour()


def test_a_truncated_segment_is_named_and_never_serves(shop: Stack) -> None:
    shop.quiet()
    live = shop.aliases()["live"]
    manifest = shop.registry.index_manifest(live)
    segment = next(s for s in manifest.segments if s.kind == "base" and s.index is not None)
    assert segment.index is not None
    whole = shop.settings.home / "truncated.faiss"
    whole.write_bytes(shop.registry.file(segment.index).read_bytes() + b"other bytes")
    with shop.registry.run("indexes", f"truncated {live}", "truncated") as run:
        ref = describe(whole, f"{INDEX_PATH}/truncated.faiss", run.run_id)
        whole.write_bytes(whole.read_bytes()[:-40])
        run.artifact(whole, INDEX_PATH)
        segments = tuple(s.model_copy(update={"index": ref}) if s is segment else s for s in manifest.segments)
        version = register(shop, manifest.model_copy(update={"id": "truncated", "segments": segments}), run.run_id, "truncated")
    told = refused(shop, version)
    assert "truncated.faiss" in told
    assert "bytes where the manifest says" in told
    assert "did not follow" in told
    assert any(f"{url}: failed" in told for url in shop.settings.serving_urls)


def test_a_poisoned_encoder_is_stopped_by_the_gates(shop: Stack) -> None:
    """Its student was never distilled from its teacher: each vector is fine by itself, yet photos find nothing. It stays out."""
    live, run_id = poisoned_night(shop, seed=5, teacher=6)
    states = shop.states("rebuild_index", run_id)
    assert states["register_version"] == "success"
    poisoned = str(shop.airflow.result("rebuild_index", run_id, "register_version")["version"])
    failed = [g.name for g in shop.registry.index_manifest(poisoned).gates if not g.passed]
    assert "photo_recall" in failed
    shop.quiet()
    assert shop.aliases()["live"] == live
    assert "did not pass its gates: photo_recall" in refused(shop, poisoned)


def test_an_encoder_that_takes_products_for_one_another_is_stopped_by_its_vectors(shop: Stack) -> None:
    """One dimension tells two kinds of products apart: nearly all vectors are the same."""
    live, run_id = poisoned_night(shop, seed=7, dim=1)
    assert shop.states("rebuild_index", run_id)["validate_embeddings"] == "failed"
    told = shop.airflow.log("rebuild_index", run_id, "validate_embeddings")
    assert "(duplicate_share) is " in told
    assert shop.aliases()["live"] == live


def test_a_new_encoder_goes_live_once_every_product_is_embedded_again(shop: Stack) -> None:
    """The second night: meanwhile the old version serves, and afterwards each replica answers with the new encoder."""
    shop.quiet()
    live = shop.aliases()["live"]
    encoder = shop.crown(0, dim=24)
    run_id = shop.airflow.trigger("rebuild_index")
    until(lambda: "embed" in {t.task for t in shop.airflow.tasks("rebuild_index", run_id) if t.state == "running"}, "it embeds")
    assert shop.serving() == [live] * 2
    assert shop.finished("rebuild_index", run_id) == "success"
    version = shop.aliases()["candidate"]
    shop.goes_live(version)
    embedded = shop.airflow.result("rebuild_index", run_id, "embed")
    assert (embedded["embedded_now"], embedded["reused"]) == (PRODUCTS, 0)
    manifest = shop.registry.index_manifest(version)
    assert (manifest.encoder.version, manifest.encoder.dim) == (encoder, 24)
    churn = next(g for g in manifest.gates if g.name == "churn")
    assert f"explained by encoder version {encoder}" in churn.reason
    assert shop.servable() == shop.catalogue.ids


@pytest.mark.parametrize("hour", range(5))
def test_hours_follow(shop: Stack, hour: int) -> None:
    start = 200 + 3 * hour
    shop.catalogue.change(
        {start: start, start + 1: start + 1, 40 + hour: 40 + hour, 100: 3000 + hour}, deletes=(20 + hour, 30 + hour)
    )
    shop.hour()


def test_a_night_whose_catalogue_lost_a_third_is_refused_and_the_next_is_good(shop: Stack) -> None:
    shop.quiet()
    live, rows = shop.aliases()["live"], dict(shop.catalogue.rows)
    gone = [int(p[1:]) for p in sorted(rows)[: len(rows) * 3 // 10]]
    shop.catalogue.change({}, deletes=tuple(gone), tell=False)
    run_id, state = shop.run("rebuild_index")
    assert state == "failed"
    assert shop.states("rebuild_index", run_id)["validate_snapshot"] == "failed"
    assert shop.aliases()["live"] == live
    shop.catalogue.rows = rows
    shop.catalogue.change({300: 300}, tell=False)
    shop.night()


def test_at_the_end_every_replica_serves_exactly_the_catalogue(shop: Stack) -> None:
    shop.quiet()
    live = shop.aliases()["live"]
    until(lambda: shop.serving() == [live] * 2, "both replicas serve it")
    assert shop.servable() == shop.catalogue.ids
    promoted = [v for v in shop.registry.versions(INDEX_MODEL) if "bake" in v.tags]
    assert all(v.tags.get("verdict") == "passed" for v in promoted)
    names = {shop.registry.manifest_of(v).id for v in promoted}
    assert "truncated" not in names
    assert len(promoted) >= 9, "three nights and six hours"


def asked(stack: Stack, version: str | None = None) -> str:
    """Starts a promotion (of the candidate, or of a version) that asks a person, and waits until it does; gives its run id."""
    run_id = stack.airflow.trigger("promote_index", {"version": version, "approval": "yes"})
    until(lambda: stack.states("promote_index", run_id).get("approve") == "awaiting_input", "a person is asked")
    return run_id


def answer(stack: Stack, run_id: str, chosen: str) -> None:
    """Answers as a person does, and once more where Airflow asks again.

    The scheduler takes a task whose answer came before it noticed the pause for one that died, and retries it: it asks anew.
    """
    path = f"/dags/promote_index/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
    body = {"chosen_options": [chosen], "params_input": {}}

    def taken() -> bool:
        time.sleep(3)  # reading the report
        state = stack.states("promote_index", run_id)["approve"]
        if state == "awaiting_input" and not stack.airflow.call("GET", path)["response_received"]:
            stack.airflow.call("PATCH", path, json=body)
        return state in ("success", "failed")

    until(taken, "the answer is taken")
