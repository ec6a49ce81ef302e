"""The hourly path over a real registry: what changed is what can be found, whatever else happens meanwhile."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from serving.contract.binding import MANIFEST_SHA256
from tasks.errors import VitrineError
from tasks.index.choice import IndexConfig
from tasks.index.delta import flat_rows
from tasks.index.template import train_template
from tasks.index.template_store import TEMPLATE_FILE, store_template, template_json
from tasks.pipelines import drain_changes, rebuild_index, refresh_index
from tasks.pipelines.index_records import RegisteredVersion
from tasks.registry import INDEX_MODEL, INDEX_PATH
from tasks.release.diff import difference
from tasks.release.trace import trace_product
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.catalogs import picture, read_table, write_table
from tests.index.shop import make_shop
from tests.pipelines.steps import without_spark

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def live(mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveShop:
    return LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)


def test_upserts_and_deletes_become_a_candidate_that_references_its_parent(live: LiveShop) -> None:
    before = live.found(live.base)
    live.send(live.upsert(3, 1), live.upsert(90, 1, seed=90), live.delete(7, 2), live.upsert(4, 1, seed=94))
    made = live.refresh("r1")
    assert made.passed, made.summary
    after = live.found(made.version)
    assert set(after) == set(before) - {"p007"} | {"p090"}
    assert (after["p003"]["title"], after["p003"]["price"]) == ("product 3 at 1", 101.0)
    np.testing.assert_array_equal(after["p003"]["vector"], before["p003"]["vector"])
    assert after["p004"]["vector"] @ before["p004"]["vector"] < 0.99, "another picture, another vector"
    assert live.count_waiting() == 0
    assert live.registry.aliases(INDEX_MODEL)["candidate"] == made.version
    parent, manifest = (live.registry.index_manifest(v) for v in (live.base, made.version))
    assert manifest.segments[: len(parent.segments)] == parent.segments
    assert manifest.parent == live.base
    counts = manifest.counts
    assert (counts.catalogue, counts.embedded, counts.quarantined, counts.servable) == (60, 60, 0, 60)


def test_new_products_hide_nothing_and_what_they_become_later_does(live: LiveShop) -> None:
    live.send(live.upsert(90, 1, seed=90), live.upsert(91, 1, seed=91))
    first = live.refresh("r1")
    assert not [s for s in live.registry.index_manifest(first.version).segments if s.kind == "tombstones"]
    assert all(part.alive is None for part in live.searcher(first.version).segments), "no search needs a mask"
    live.send(live.upsert(90, 2, seed=92), live.delete(91, 2))
    second = live.refresh("r2")
    stones = [s for s in live.registry.index_manifest(second.version).segments if s.kind == "tombstones"]
    assert sum(s.rows for s in stones) == 2
    assert live.found(second.version)["p090"]["title"] == "product 90 at 2"
    live.send(live.upsert(91, 3, seed=91))
    third = live.found(live.refresh("r3").version)
    assert third["p091"]["title"] == "product 91 at 3"
    assert len(third) == 62


def test_nothing_new_makes_no_version_and_is_acknowledged(live: LiveShop) -> None:
    assert live.refresh("r1").changes == 0
    live.send(live.upsert(3, 1))
    live.refresh("r2")
    live.send(live.upsert(3, 1), live.upsert(3, 0), live.delete(3, 0))
    assert live.refresh("r3").changes == 0, "a duplicate and two that come too late"
    assert live.count_waiting() == 0


def test_other_rules_make_a_version_of_the_same_segments(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = live.home / "ranker.json"
    rules.write_text(json.dumps({"weights": {"colour": 0.3}, "rules": {"bury": [{"where": {"product_id": "p003"}, "by": 0.01}]}}))
    monkeypatch.setenv("VITRINE_RANKER", str(rules))
    made = live.refresh("r1")
    assert made.passed, made.summary
    assert "other weights or rules of the ranker" in made.summary
    parent, manifest = (live.registry.index_manifest(v) for v in (live.base, made.version))
    assert manifest.ranker == json.loads(rules.read_text())
    assert manifest.segments == parent.segments
    assert manifest.content_key != parent.content_key
    assert not live.refresh("r2").due, "they are its own now"
    live.send(live.upsert(3, 1))
    changed = live.refresh("r3")
    assert live.registry.index_manifest(changed.version).ranker == manifest.ranker
    monkeypatch.delenv("VITRINE_RANKER")
    assert live.registry.index_manifest(live.refresh("r4").version).ranker == {}


def test_rules_that_cannot_be_used_are_refused_and_nothing_is_lost(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = live.home / "ranker.json"
    rules.write_text('{"rules": {"collapse": "article"}}')
    monkeypatch.setenv("VITRINE_RANKER", str(rules))
    live.send(live.upsert(3, 1))
    with pytest.raises(VitrineError, match=r"ranker\.json: filter: this index version has no column 'article'"):
        live.refresh("r1")
    rules.write_text('{"rules": {"colapse": "brand"}}')
    with pytest.raises(
        VitrineError, match=r"ranker\.json holds no weights and rules: rules\.colapse: Extra inputs are not permitted"
    ):
        live.refresh("r2")
    assert live.registry.aliases(INDEX_MODEL)["candidate"] == live.base
    rules.unlink()
    with pytest.raises(VitrineError, match="cannot be read"):
        live.refresh("r3")
    monkeypatch.delenv("VITRINE_RANKER")
    assert live.found(live.refresh("r4").version)["p003"]["title"] == "product 3 at 1"


def test_an_unusable_picture_takes_its_product_out_and_a_good_one_brings_it_back(live: LiveShop) -> None:
    (live.home / "shop" / "images" / "bad.jpg").write_bytes(b"no picture")
    live.send(live.upsert(3, 1, image="images/bad.jpg"))
    first = live.refresh("r1")
    counts = live.registry.index_manifest(first.version).counts
    assert (counts.catalogue, counts.quarantined, counts.servable) == (60, 1, 59)
    assert "p003" not in live.found(first.version)
    live.send(live.upsert(3, 2))
    second = live.refresh("r2")
    counts = live.registry.index_manifest(second.version).counts
    assert (counts.catalogue, counts.quarantined, counts.servable) == (60, 0, 60)
    assert live.found(second.version)["p003"]["title"] == "product 3 at 2"


def test_photos_of_deleted_products_count_neither_for_nor_against_a_version(
    live: LiveShop, caplog: pytest.LogCaptureFixture
) -> None:
    live.send(*(live.delete(n, 1) for n in range(5)))
    with caplog.at_level("INFO"):
        made = live.refresh("r1")
    assert made.passed, made.summary
    gate = next(g for g in live.registry.index_manifest(made.version).gates if g.name == "photo_recall")
    assert (gate.value, "on 55 held-out photos" in gate.reason) == (1.0, True), gate.reason
    assert "5 of 60 queries show products deleted since snapshot made-1: left out" in caplog.text
    answers = difference(live.registry, live.base, made.version, photos=60).answers
    assert len(answers) == 55
    assert {a.after for a in answers} == {1}
    live.send(live.upsert(0, 2))
    back = live.registry.index_manifest(live.refresh("r2").version)
    assert "on 56 held-out photos" in next(g.reason for g in back.gates if g.name == "photo_recall")


def test_a_quarantined_product_is_named_in_the_run_and_traced_with_its_reason(live: LiveShop) -> None:
    live.send(live.upsert(90, 1, image="/srv/pictures/90.jpg"))
    first = live.refresh("r1")
    assert "is in quarantine: p090 (outside_root); the release board lists them; all" in first.summary
    assert live.registry.index_manifest(first.version).counts.quarantined == 1
    outside = "quarantined: /srv/pictures/90.jpg: lies outside the pictures' folder "
    for version in (live.base, first.version):  # the live version never heard of it, the candidate left it out
        with pytest.raises(VitrineError, match=f"'p090' is not in index version {version}: {outside}") as caught:
            trace_product(live.registry, "p090", version)
        assert "a picture's path is relative to that folder" in str(caught.value)
        assert re.search(r"\(outside_root\), in run r1 at 20\d\d-\d\d-\d\d \d\d:\d\d UTC$", str(caught.value))

    absolute = picture(live.home / "shop" / "images" / "90.jpg", 90)
    live.send(live.upsert(90, 2, image=str(absolute)), live.upsert(91, 2, seed=91, image=absolute.as_uri()))
    second = live.refresh("r2")
    assert "in quarantine" not in second.summary
    assert {"p090", "p091"} <= set(live.found(second.version))
    chain = dict(trace_product(live.registry, "p090", second.version))
    assert (chain["picture"], chain["made by"].split(",")[0]) == (str(absolute), "r2")
    assert "quarantined" not in chain
    first_commit, commit = live.registry.index_manifest(second.version).embeddings
    assert (first_commit.embedded, first_commit.quarantined, commit.embedded, commit.quarantined) == (0, 1, 2, 0)
    assert chain["embedding commit"] == f"{commit.uri}, {commit.sha256[:12]}"
    assert chain["vector"].startswith(f"{commit.store}/part-")
    (Path(commit.uri) / "_manifest.json").write_text("{}")
    changed = dict(trace_product(live.registry, "p090", second.version))
    assert changed["embedding commit"].endswith("(its _manifest.json is another by now: it was changed)")
    with pytest.raises(VitrineError, match=rf"{outside}.*; index version {second.version} has it$"):
        trace_product(live.registry, "p090", first.version)


def test_an_older_picture_that_is_live_is_traced_with_what_is_wrong_with_the_new_one(live: LiveShop) -> None:
    live.send(live.upsert(3, 1, image="images/none.jpg"), live.delete(4, 1))
    made = live.refresh("r1")
    chain = dict(trace_product(live.registry, "p003"))
    assert chain["picture"] == "images/3.jpg"
    assert re.match(
        r"images/none\.jpg: there is no such file below .* \(missing\), in run r1 at .* UTC; the picture above is an older one",
        chain["quarantined"],
    )
    assert "quarantined" not in dict(trace_product(live.registry, "p005"))
    for product, why in {
        "p003": r"quarantined: images/none\.jpg: there is no such file below",
        "p004": r"a change of 20.* UTC deleted it$",
        "p999": r"it is neither in its snapshot made-1 nor in a change since$",
    }.items():
        with pytest.raises(VitrineError, match=f"{product!r} is not in index version {made.version}: {why}"):
            trace_product(live.registry, product, made.version)


def test_a_rebuild_that_cannot_use_a_picture_names_it_and_trace_tells_it_whatever_became_of_the_run(
    live: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_spark(monkeypatch)
    rows = read_table(live.home / "shop" / "products.csv")
    write_table(live.home / "shop" / "products.csv", [rows[0] | {"image": "/srv/0.jpg"}, *rows[1:]])
    made = rebuild_index.embed(live.shop.snapshot("nightly"), live.registry.index_manifest(live.base).encoder, "nightly")
    assert "in quarantine: p000 (outside_root)" in made.note()
    assert made.summary.endswith("; in quarantine: p000 (outside_root)")
    # The run was stopped here: no version tells of it, and the live one still shows the older picture.
    chain = dict(trace_product(live.registry, "p000"))
    assert chain["quarantined"].startswith("/srv/0.jpg: lies outside the pictures' folder ")
    assert "in run nightly at 20" in chain["quarantined"]


def test_a_version_that_fails_its_gates_acknowledges_nothing(live: LiveShop) -> None:
    (live.home / "shop" / "images" / "bad.jpg").write_bytes(b"no picture")
    live.send(*(live.upsert(n, 1, image="images/bad.jpg") for n in range(3)))
    with pytest.raises(VitrineError, match="Products without a usable picture"):
        live.refresh("r1")
    assert live.count_waiting() == 3
    assert live.registry.aliases(INDEX_MODEL)["candidate"] == live.base
    live.send(*(live.upsert(n, 2) for n in range(3)))
    made = live.refresh("r2")
    assert live.registry.index_manifest(made.version).parent == live.base
    assert live.count_waiting() == 0


def test_malformed_messages_go_to_the_dead_letters_with_the_reason(live: LiveShop) -> None:
    with live.queue() as source:
        source.make_tables()  # type: ignore[attr-defined]
        source.database.execute("INSERT INTO outbox (event) VALUES ('nonsense'), ('{\"kind\": \"upsert\"}')")  # type: ignore[attr-defined]
    live.send(live.upsert(3, 1))
    plan = drain_changes.drain("r1")
    embedded = refresh_index.embed(plan)
    registered = refresh_index.register(plan, embedded)
    told = refresh_index.acknowledge(plan, registered, embedded)
    with live.queue() as source:
        second, first = source.dead_letters(10)
        assert source.count_waiting() == 0
    assert "not JSON" in first.reason
    assert "product_id is None" in second.reason
    assert plan.note.startswith("2 of 3 changes became dead letters: not JSON: ")
    assert plan.note.endswith("; vitrine changes dead lists them")
    assert plan.note in plan.summary
    assert plan.note in registered.summary
    assert (told.acknowledged, told.waiting, told.dead_letters, told.quarantined) == (3, 0, 2, 0)
    assert plan.note in told.summary
    run = live.registry.client.get_run(live.registry.version(INDEX_MODEL, registered.version).run_id)
    assert run.data.metrics["changes.dead_letters"] == 2


def test_a_run_whose_changes_are_all_dead_letters_makes_nothing_and_says_so(live: LiveShop) -> None:
    with live.queue() as source:
        source.make_tables()  # type: ignore[attr-defined]
        source.database.execute("INSERT INTO outbox (event) VALUES ('nonsense')")  # type: ignore[attr-defined]
    plan = live.refresh("r1")
    assert (plan.due, plan.dead_letters) == (False, 1)
    assert "1 of 1 change became a dead letter: not JSON" in plan.summary
    assert live.refresh("r2").note == "", "the next run has nothing to tell"


def test_priority_products_go_first_and_the_others_wait(live: LiveShop) -> None:
    live.send(*(live.upsert(n, 1) for n in range(5)), live.upsert(20, 1, priority=True), live.delete(21, 1))
    first = live.refresh("r1", limit=3)
    assert "4 wait for the next refresh" in first.summary
    found = live.found(first.version)
    assert found["p020"]["title"] == "product 20 at 1"
    assert "p021" not in found
    assert live.count_waiting() == 4
    second = live.refresh("r2")
    assert live.found(second.version)["p004"]["title"] == "product 4 at 1"


def test_what_another_maker_acknowledged_meanwhile_is_carried_over(live: LiveShop) -> None:
    live.send(live.upsert(3, 1))
    plan = drain_changes.drain("fork")
    live.send(live.upsert(4, 1))
    first = live.refresh("r1")  # the outbox gives both to both
    live.send(live.upsert(5, 1), live.delete(6, 1))
    registered = refresh_index.register(plan, refresh_index.embed(plan))
    live.refresh("r2")
    live.shop.point(live=first.version, candidate=first.version, blue=first.version)
    live.send(live.upsert(8, 1))
    made = live.refresh("r3")
    assert live.registry.version(INDEX_MODEL, made.version).tags["carried"]
    found = live.found(made.version)
    assert "p006" not in found
    assert [found[f"p00{n}"]["title"] for n in (3, 4, 5, 8)] == [f"product {n} at 1" for n in (3, 4, 5, 8)]
    assert registered.passed
    assert live.refresh("r4").changes == 0, "nothing is carried over twice"


def test_a_newer_releases_version_whose_changes_would_be_carried_over_is_named(live: LiveShop) -> None:
    live.send(live.upsert(3, 1))
    newer = live.registry.version(INDEX_MODEL, live.refresh("r1").version)
    live.shop.point(live=live.base, candidate=live.base, blue=live.base)
    (manifest,) = (live.home / "artifacts").rglob(f"{newer.run_id}/**/manifest.json")
    data = manifest.read_bytes().replace(b'"format": 2', b'"format": 3', 1)
    manifest.write_bytes(data)
    live.registry.tag_version(INDEX_MODEL, newer.version, MANIFEST_SHA256, hashlib.sha256(data).hexdigest())
    live.send(live.upsert(4, 1))
    named = f"index version {newer.version} holds changes .* format of a newer Vitrine.*; .* delete it in MLflow and start rebuild_index"
    with pytest.raises(VitrineError, match=named):
        live.refresh("r2")
    live.registry.delete_version(INDEX_MODEL, newer.version)
    assert live.refresh("r2").passed


def test_a_rebuild_takes_along_what_hourly_versions_took_in_meanwhile(live: LiveShop) -> None:
    from tasks.pipelines.refresh_index import catch_up

    live.send(live.upsert(3, 1), live.delete(6, 1), live.upsert(91, 1, seed=91))
    snapshot = live.shop.snapshot("nightly")  # without these changes, as if the database had been copied a moment earlier
    live.refresh("r1")
    base = live.shop.version(snapshot=snapshot)
    made = catch_up(RegisteredVersion(base, True, ""), "nightly")
    assert made.version != base
    manifest = live.registry.index_manifest(made.version)
    assert (manifest.parent, manifest.snapshot.id) == (base, "nightly")
    found = live.found(made.version)
    assert "p006" not in found
    assert "p091" in found
    assert found["p003"]["title"] == "product 3 at 1"
    refresh_index.publish(made)
    assert live.refresh("r2").changes == 0
    assert catch_up(made, "again") == made, "a base that missed nothing is published as it is"


def test_one_run_is_made_once(live: LiveShop) -> None:
    live.send(live.upsert(3, 1))
    first = live.refresh("r1")
    live.send(live.upsert(4, 1))
    assert live.refresh("r1") == first
    assert live.count_waiting() == 1
    second = live.refresh("r2")
    assert live.registry.index_manifest(second.version).parent == first.version


def test_many_small_versions_are_merged_and_garbage_takes_nothing_that_is_needed(
    live: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.release.retention.garbage import collect, unreachable_files
    from tasks.release.retention.policy import Retention
    from tests.release.retention.test_garbage import alone_here

    monkeypatch.setattr("tasks.index.delta_version.MERGE_SEGMENTS", 4)
    monkeypatch.setattr("tasks.index.delta_version.MERGE_LEDGERS", 2)
    for n in range(5):
        live.send(live.upsert(n, 1), live.upsert(20 + n, 1))
        made = live.refresh(f"r{n}")
    assert max(np.bincount([s.shard for s in live.registry.index_manifest(made.version).segments])) <= 6
    live.shop.point(live=made.version, blue=made.version)
    plan = collect(live.registry, str(live.home / "data"), Retention(versions=1, grace_s=0.0), alone_here)
    assert plan.items
    assert unreachable_files(live.registry) == []
    live.send(live.upsert(2, 0), live.upsert(7, 1))
    again = live.refresh("after")
    found = live.found(again.version)
    assert found["p002"]["title"] == "product 2 at 1", "the ledger still knows the later change"
    assert found["p007"]["title"] == "product 7 at 1"


def test_flat_rows_that_grow_many_get_the_lists_and_codes_of_the_base(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.index.delta_version.CODED_ROWS", 3)
    folder = live.home / "template"
    manifest = live.registry.index_manifest(live.base)
    shop = make_shop(folder / "shop", n=5000, d=manifest.encoder.dim, shards=8)
    template = train_template(shop.vectors_uri, IndexConfig(shards=8, family="ivf_fs_sq8"), folder)
    live.send(*(live.upsert(n, 1) for n in range(4)))
    flat = live.refresh("no template is kept")
    assert flat_rows(live.registry.index_manifest(flat.version).segments) == 4

    stored = store_template(template, str(folder / "kept"))
    (folder / TEMPLATE_FILE).write_text(template_json(stored, manifest.encoder.document_fingerprint))
    run_id = next(s.index.run_id for s in manifest.segments if s.index is not None)
    live.registry.client.log_artifact(run_id, str(folder / TEMPLATE_FILE), INDEX_PATH)
    live.send(live.upsert(2, 2), live.upsert(90, 2, seed=90), live.delete(3, 2))
    coded = live.registry.index_manifest(live.refresh("coded").version)
    assert flat_rows(coded.segments) == 0
    assert sum(s.rows for s in coded.segments if s.family == "ivf_fs_sq8") == 4, "0 and 1 as they were, 2 anew, 90"

    live.send(live.upsert(5, 3))
    last = live.refresh("one more").version
    assert set(coded.segments) <= set(live.registry.index_manifest(last).segments), "coded once"
    found = live.found(last)
    assert len(found) == 60
    assert "p003" not in found
    assert [found[p]["title"] for p in ("p002", "p090", "p005")] == ["product 2 at 2", "product 90 at 2", "product 5 at 3"]

    monkeypatch.setattr("tasks.index.delta_version.MERGE_SEGMENTS", 3)
    live.send(live.upsert(6, 4))
    version = live.refresh("merged").version
    merged = live.registry.index_manifest(version).segments
    assert (len(merged) < len(coded.segments), flat_rows(merged)) == (True, 0), "what was coded does not become flat again"
    assert len(live.found(version)) == 60
