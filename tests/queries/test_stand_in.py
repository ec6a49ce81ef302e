"""Views stand in for photos product by product: which ones, how many, and where they lie."""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.contract.preprocess import ImageRejected
from serving.contract.provenance import QuerySet
from tasks import storage
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.embed.images import read_image
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.evaluate.exact_search import search_photos
from tasks.queries import stand_in
from tasks.queries.photo_loss import loss_on_photos
from tasks.queries.query_words import describe, hits, measure_name, query_set, tuning_target
from tasks.queries.stand_in import make_stand_ins, stratified_order
from tasks.queries.view_store import SCHEME, is_view, read_view, view_table, view_uri
from tasks.release.gates.end_to_end_eval import Query, held_by, held_out_queries, rank_of
from tests.catalogs import picture, read_table, small_catalog, write_table


def snapshot_of(folder: Path, name: str = "one") -> Snapshot:
    return take_snapshot(str(folder), str(folder.parent / "snapshots"), name)


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Twelve products of two categories, no photos, and a picture that cannot be used."""
    folder = small_catalog(tmp_path / "shop")
    (folder / "photos.csv").unlink()
    (folder / "images" / "3.jpg").write_bytes(b"no picture")
    return folder


def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def test_an_unlabelled_catalogue_asks_views_of_all_usable_pictures_made_once(unlabelled: Path, tmp_path: Path) -> None:
    snapshot = snapshot_of(unlabelled)
    made = make_stand_ins(snapshot, store(tmp_path), enough=200)
    assert sorted(made["product_id"].to_pylist()) == [f"p{n:03d}" for n in range(12) if n != 3]
    files = {uri: storage.validator(uri) for uri in storage.list_files(f"{store(tmp_path)}/views")}
    assert len(files) == 11
    assert make_stand_ins(snapshot, store(tmp_path), enough=200).equals(made)
    again = make_stand_ins(snapshot_of(unlabelled, "two"), store(tmp_path), enough=200)
    assert again.equals(made), "another snapshot of the same pictures asks the same"
    assert {uri: storage.validator(uri) for uri in files} == files, "and nothing is written anew"


def test_views_that_were_made_long_ago_count_as_new_from_the_moment_a_snapshot_asks_them(
    unlabelled: Path, tmp_path: Path
) -> None:
    """Else garbage collection, which spares what is young, could take one before the table that names it is written."""
    made = make_stand_ins(snapshot_of(unlabelled), store(tmp_path), enough=200)
    views = [Path(uri.removeprefix(SCHEME)) for uri in made["photo_uri"].to_pylist()]
    content = {view: view.read_bytes() for view in views}
    for view in views:
        os.utime(view, (0, 0))
    make_stand_ins(snapshot_of(unlabelled, "two"), store(tmp_path), enough=200)
    assert {view: view.read_bytes() for view in views} == content
    assert min(view.stat().st_mtime for view in views) > 0


def test_queries_and_training_data_hold_the_views_and_nothing_trains_on_them(unlabelled: Path, tmp_path: Path) -> None:
    snapshot = snapshot_of(unlabelled)
    make_stand_ins(snapshot, store(tmp_path), enough=200)
    queries, training = held_out_queries(snapshot), read_training_set(snapshot.uri)
    assert len(queries) == 11
    assert all(q.synthetic for q in queries)
    assert training.held_out().uris == tuple(q.photo_uri for q in queries)
    assert not len(training.split("train"))
    assert not len(training.never_trained())
    assert set(training.unseen_queries().products) == {p for p in training.held_out().products if training.unseen[p]}
    for query in queries:
        data = read_image(query.photo_uri, snapshot.image_root)
        assert data[:2] == b"\xff\xd8"
        assert data != (unlabelled / "images" / f"{int(query.product_id[1:])}.jpg").read_bytes()


def test_a_further_picture_is_what_a_view_is_made_of_where_one_can_be_used(unlabelled: Path, tmp_path: Path) -> None:
    rows = read_table(unlabelled / "products.csv")
    for n, name in ((90, "side.jpg"), (91, "back.jpg")):
        picture(unlabelled / "images" / name, n)
    (unlabelled / "images" / "broken.jpg").write_bytes(b"no picture")
    listed = {0: ["side.jpg", "back.jpg"], 1: ["broken.jpg", "back.jpg"], 2: ["broken.jpg"], 3: ["side.jpg"]}
    for n, row in enumerate(rows):
        row["images"] = json.dumps([f"images/{name}" for name in listed.get(n, [])])
    write_table(unlabelled / "products.csv", rows)
    snapshot = snapshot_of(unlabelled)
    made = {row["product_id"]: row for row in make_stand_ins(snapshot, store(tmp_path), enough=200).to_pylist()}

    def of(name: str) -> str:
        return view_uri(store(tmp_path), hashlib.sha256((unlabelled / "images" / name).read_bytes()).hexdigest())

    assert made["p001"]["photo_uri"] == of("back.jpg")
    assert made["p002"]["photo_uri"] == of("2.jpg"), "none of its further pictures can be used"
    assert made["p005"]["photo_uri"] == of("5.jpg")
    assert {row["image_uri"] for row in made.values()} <= {f"images/{n}.jpg" for n in range(12)}
    assert not {"p000", "p003"} & set(made), "both would show the same further picture: whose it is cannot be said"
    training = read_training_set(snapshot.uri)
    pairs = {(training.product_ids[p], uri) for uri, p in zip(training.further.uris, training.further.products, strict=True)}
    trained = {f"p{n:03d}" for n in listed} - {
        i for i, unseen in zip(training.product_ids, training.unseen, strict=True) if unseen
    }
    assert pairs == {(f"p{n:03d}", f"images/{name}") for n, names in listed.items() for name in names if f"p{n:03d}" in trained}


def test_photos_replace_views_product_by_product_until_there_are_enough(tmp_path: Path) -> None:
    folder = small_catalog(tmp_path / "shop")
    photos = [p for p in read_table(folder / "photos.csv") if p["split"] == "val"]
    write_table(folder / "photos.csv", photos[:5])
    snapshot = snapshot_of(folder)
    assert make_stand_ins(snapshot, store(tmp_path), enough=6)["product_id"].to_pylist() != []
    queries = held_out_queries(snapshot)
    assert query_set(q.photo_uri for q in queries) == QuerySet(kind="mixed", photos=5, synthetic=7)
    assert sorted(q.product_id for q in queries) == [f"p{n:03d}" for n in range(12)], "each product once"
    for name, enough in (("enough", 5), ("never", 0)):
        labelled = snapshot_of(folder, name)
        assert len(make_stand_ins(labelled, store(tmp_path), enough=enough)) == 0
        assert query_set(q.photo_uri for q in held_out_queries(labelled)) == QuerySet.of(photos=5)


def test_views_are_bounded_and_of_every_category(unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "MOST", 4)
    snapshot = snapshot_of(unlabelled)
    made = make_stand_ins(snapshot, store(tmp_path), enough=200)["product_id"].to_pylist()
    assert len(made) == 4
    assert {int(p[1:]) % 2 for p in made} == {0, 1}


def test_any_head_of_the_order_is_stratified() -> None:
    keys = np.random.default_rng(0).permutation(1000).astype(np.int64)
    strata = np.repeat([0, 1, 2, 3], [700, 250, 49, 1])
    order = stratified_order(keys, strata)
    assert sorted(order) == list(range(1000))
    assert set(strata[order[:4]]) == {0, 1, 2, 3}, "even the smallest has one"
    for head in (100, 500):
        shares = np.bincount(strata[order[:head]], minlength=4) / head
        assert np.abs(shares - [0.7, 0.25, 0.049, 0.001]).max() < 0.02
    assert not len(stratified_order(np.zeros(0, np.int64), np.zeros(0, np.int64)))


@pytest.mark.parametrize(
    "uri", ["view:///etc/passwd", "view://views/../x/views/" + "0" * 64 + "-1-0.jpg", "view://s3://bucket/key"]
)
def test_nothing_but_a_view_is_read_by_such_an_address(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image(uri, str(tmp_path))
    assert caught.value.reason == "forbidden_scheme"


def test_a_view_that_is_gone_is_a_missing_picture(tmp_path: Path) -> None:
    uri = view_uri(str(tmp_path), "0" * 64)
    assert is_view(uri)
    assert uri.startswith(SCHEME)
    with pytest.raises(ImageRejected, match="there is no such view"):
        read_view(uri)


def test_a_snapshot_without_views_has_an_empty_table(tmp_path: Path) -> None:
    assert len(view_table(snapshot_of(small_catalog(tmp_path / "shop")).uri)) == 0


def test_words_depths_and_targets_of_photos_views_and_both() -> None:
    view = view_uri("/store", "0" * 64)
    photos, views, both = QuerySet.of(296), QuerySet.of(0, 200), QuerySet.of(12, 188)
    assert (describe(photos), describe(views)) == ("296 held-out photos", "200 synthetic queries")
    assert describe(both) == "12 held-out photos and 188 synthetic queries"
    assert [measure_name(q).split()[0] for q in (photos, views, both)] == ["Recall@10", "Recall@1", "Recall@10"]
    assert hits(["a.jpg", "a.jpg", "a.jpg", view, view, view], [1, 10, 11, 1, 2, 0]).tolist() == [1, 1, 0, 1, 0, 0]
    assert [round(tuning_target(0.95, q), 3) for q in (photos, views, both, None)] == [0.95, 0.975, 0.975, 0.95]


def test_a_picture_of_several_products_is_asked_once_and_any_of_them_answers_it(unlabelled: Path, tmp_path: Path) -> None:
    rows = read_table(unlabelled / "products.csv")
    for number, row in enumerate(rows):
        row["image"] = rows[number - number % 2]["image"]
    write_table(unlabelled / "products.csv", rows)
    (unlabelled / "images" / "10.jpg").write_bytes(
        (unlabelled / "images" / "8.jpg").read_bytes()
    )  # one picture under two addresses
    snapshot = snapshot_of(unlabelled)
    made = make_stand_ins(snapshot, store(tmp_path), enough=200)
    assert sorted(made["image_uri"].to_pylist()) == [f"images/{n}.jpg" for n in (0, 2, 4, 6)]
    assert len(set(made["photo_uri"].to_pylist())) == 4
    query = held_out_queries(snapshot)[0]
    twin = {"product_id": "twin", "image_uri": query.image_uri}
    assert (
        rank_of(query, [{"product_id": "other", "image_uri": "x"}, twin, {"product_id": query.product_id, "image_uri": "y"}]) == 1
    )
    assert rank_of(Query("photo", "p001"), [{"product_id": "other", "image_uri": ""}]) == -1


def test_products_with_the_same_picture_do_not_count_before_the_one_that_a_view_is_of() -> None:
    xb = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    everything, products = np.ones(6, bool), np.arange(6)
    pictures = np.repeat([4, 5, 6], 2)
    views = np.asarray([True] * 4 + [False] * 2)
    found = search_photos(xb, xb, everything, products, everything, pictures, views)
    assert found.ranks.tolist() == [1, 1, 1, 1, 2, 2]


def test_many_views_do_not_hide_what_photos_lose() -> None:
    uris = [f"photos/{n}.jpg" for n in range(100)] + [view_uri("s", f"{n:064d}") for n in range(1900)]
    lost = np.zeros(2000)
    lost[:20] = -1.0
    assert lost.mean() > -0.02, "within the margin over all"
    assert loss_on_photos(uris, lost, 0.02).startswith("; on the 100 photos alone -0.200 (95 % interval ")
    assert loss_on_photos(uris, lost * 0, 0.02) == ""
    assert loss_on_photos(uris[:100], lost[:100], 0.02) == "", "of photos alone the gate itself says it"
    lost[:20] = [-1.0, -1.0, -1.0, 1.0] * 5
    lost[20:27] = 1.0
    assert loss_on_photos(uris, lost, 0.02) == "", "a loss that may be chance"


def test_views_of_products_that_a_version_lacks_are_no_misses_of_it() -> None:
    table = pa.table({"product_id": ["p0", "p1", "p2"]})
    version: Any = SimpleNamespace(features=SimpleNamespace(table=table), live=lambda: np.asarray([True, False, True]))
    views = [Query(view_uri("s", f"{n:064d}"), f"p{n}", "images/x.jpg") for n in range(4)]
    photo = Query("photos/3.jpg", "p3")
    assert held_by([*views, photo], version) == [views[0], views[2], photo]
