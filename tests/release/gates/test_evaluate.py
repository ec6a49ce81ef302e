"""Measuring real releases: reconciliation by product, load from several sides, real queries for two versions, and the whole."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from serving.contract.keys import product_keys
from serving.search.live_recall import measure_recall
from serving.versions.release import Release
from serving.versions.version_source import FolderSource
from tasks.catalog.snapshot import Snapshot, product_table
from tasks.index.families import FAMILIES
from tasks.index.ground_truth import exact_truth
from tasks.release.gates.comparison import Reconciliation
from tasks.release.gates.end_to_end_eval import held_out_queries, read_photos
from tasks.release.gates.evaluate import evaluate_version, first_phase_recall
from tasks.release.gates.index_gates import Policy
from tasks.release.gates.load_test import run_load_test
from tasks.release.gates.reconcile import reconcile
from tasks.release.promotion.replay import churn, replay_queries, top_ids
from tasks.release.promotion.serving_replicas import SampledQuery
from tests.index.shop import clustered, make_shop, open_shop
from tests.releases import add_version, make_release, source


class Shop:
    """Two versions of twelve products, of different encoders, open."""

    def __init__(self, home: Path) -> None:
        self.snapshot: Snapshot = make_release(home)
        add_version(home, self.snapshot, "2", seed=1)
        self.folder: FolderSource = source(home)
        self.one, self.two = self.open("1"), self.open("2")
        self.queries = held_out_queries(self.snapshot)
        self.photos = read_photos(self.snapshot, self.queries)

    def open(self, version: str) -> Release:
        manifest = self.folder.manifest(version)
        return Release.open(version, manifest, self.folder.encoder(manifest), self.folder.fetch)

    def sample(self, release: Release, photo: bytes, kept: bool = False) -> SampledQuery:
        vector = release.encode_photo(photo).vector
        return SampledQuery("photo", release.query.fingerprint, "a" * 64, vector, photo if kept else None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("measuring"))


def catalogue(shop: Shop, without: tuple[str, ...] = (), besides: tuple[str, ...] = ()) -> pa.Table:
    ids = [p for p in product_table(shop.snapshot.uri, ["product_id"])["product_id"].to_pylist() if p not in without]
    ids += besides
    return pa.table({"product_id": ids, "key": product_keys(ids)})


@pytest.mark.parametrize(
    ("known", "quarantined", "expected"),
    [
        ({}, (), Reconciliation()),
        ({"besides": ("new",)}, (), Reconciliation(missing=("new",))),
        ({"besides": ("new",)}, ("new",), Reconciliation()),
        ({"besides": ("new",)}, 1, Reconciliation()),
        ({"besides": ("new", "newer")}, 1, Reconciliation(missing=("new", "newer"))),
        ({"without": ("p003",)}, (), Reconciliation(strange=("p003",))),
        ({}, ("p004",), Reconciliation(doubled=("p004",))),
        ({"without": ("p003",), "besides": ("new",)}, (), Reconciliation(missing=("new",), strange=("p003",))),
    ],
)
def test_every_product_out_of_place_is_named(shop: Shop, known: dict, quarantined: object, expected: Reconciliation) -> None:
    keys = quarantined if isinstance(quarantined, int) else product_keys(list(quarantined))  # type: ignore[call-overload]
    assert reconcile(shop.one.searcher, catalogue(shop, **known), keys) == expected


def test_load_comes_from_all_sides_and_leaves_out_what_is_no_picture(shop: Shop) -> None:
    load = run_load_test(shop.one, [*shop.photos, b"not a picture"], clients=3, seconds=0.2)
    assert load.clients == 3
    assert len(load.ms) >= 3
    assert load.qps > 0
    assert load.percentile(99) >= load.percentile(50) > 0
    assert run_load_test(shop.one, [], 3, 0.1).percentile(99) == 0.0


def test_a_sampled_vector_is_asked_as_it_is_while_the_encoder_is_the_same(shop: Shop) -> None:
    sampled = [shop.sample(shop.one, p) for p in shop.photos]
    queries = replay_queries(shop.one, shop.one, sampled * 2, shop.photos, 100)
    assert queries.origin == "24 sampled real queries"
    assert queries.live_vectors is not None
    assert np.array_equal(queries.vectors, queries.live_vectors)
    assert churn(top_ids(shop.one, queries.vectors), top_ids(shop.one, queries.live_vectors)) == 0.0


def test_another_encoder_is_asked_by_photo_where_it_was_kept_else_by_held_out_photos(shop: Shop) -> None:
    kept = [shop.sample(shop.one, p, kept=True) for p in shop.photos]
    queries = replay_queries(shop.two, shop.one, kept, shop.photos, 5)
    assert queries.origin == "5 sampled real queries"
    assert queries.live_vectors is not None
    assert np.array_equal(queries.vectors[0], shop.two.encode_photo(shop.photos[0]).vector)
    assert np.array_equal(queries.live_vectors[0], kept[0].vector)
    private = [shop.sample(shop.one, p) for p in shop.photos]
    queries = replay_queries(shop.two, shop.one, private, [b"no picture", *shop.photos], 100)
    assert queries.origin == "12 held-out photos"
    assert len(queries) == 12
    first = replay_queries(shop.one, None, [], [], 100)
    assert (len(first), first.live_vectors, first.origin) == (0, None, "no queries")


def test_churn_is_the_share_that_is_other_products_now() -> None:
    assert churn([["a", "b"], ["c", "d"]], [["a", "b"], ["c", "e"]]) == 0.25
    assert churn([], []) == 0.0
    assert churn([["a"]], [[]]) == 0.0


def test_a_version_like_the_live_one_passes_and_one_of_an_old_catalogue_does_not(shop: Shop) -> None:
    now = datetime.now(UTC)
    policy = Policy(p99_ms=5000)
    decision, measured = evaluate_version(
        shop.one, shop.one, shop.snapshot, shop.queries, policy, [], now - timedelta(hours=2), now
    )
    assert decision.passed, decision.summary
    assert {g.name for g in decision.gates} >= {
        "exact_recall", "photo_recall", "p99_ms", "memory_mb", "reconciled", "quarantined", "servable", "lost", "churn", "delta_share",
        "age_h",
    }  # fmt: skip
    assert measured.age_h == pytest.approx(2)
    assert measured.recall_at_10 > 0.8
    assert 0 < measured.memory_mb < 100
    stale, _ = evaluate_version(shop.one, shop.one, shop.snapshot, shop.queries, policy, [], now - timedelta(hours=50), now)
    assert [g.name for g in stale.gates if not g.passed] == ["age_h"]


def test_recall_is_that_of_the_encoders_vectors_where_they_are_at_hand(tmp_path: Path) -> None:
    """An index of codes finds by its own codes, and by them alone."""
    shop = make_shop(tmp_path / "shop", n=6000)
    xq = clustered(np.random.default_rng(3), 40, 32)
    nearest = shop.keys[np.argsort(-(xq @ shop.vectors.T), axis=1)[:, :10]]
    searcher = open_shop(shop, tmp_path, "ivf_pq", dict(FAMILIES["ivf_pq"].grid[-1]))
    release = cast(Release, SimpleNamespace(searcher=searcher, candidates=500))
    found = searcher.features.key[searcher.search(xq, 500).rows[:, :10]]
    true = np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)])
    assert 0.3 < true < 0.7
    assert first_phase_recall(release, xq, exact_truth(shop.vectors_uri, shop.shards, xq, tmp_path)) == pytest.approx(
        true, abs=0.01
    )
    assert np.mean([measure_recall(release, x) for x in xq]) == pytest.approx(first_phase_recall(release, xq))
