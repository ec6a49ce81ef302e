"""Ranks, recall and intervals against their definitions."""

import numpy as np
import pytest

from tasks.encoder.evaluate.retrieval_metrics import (
    average_precision,
    best_by_group,
    cluster_interval,
    interval,
    mean_reciprocal_rank,
    paired_bootstrap,
    ranks,
    recall_at,
)


def test_a_rank_is_the_place_in_the_sorted_list() -> None:
    similarity = np.random.default_rng(0).random((50, 30)).astype(np.float32)
    relevant = np.random.default_rng(1).integers(0, 30, 50)
    order = np.argsort(-similarity, axis=1)
    expected = [int(np.flatnonzero(order[i] == relevant[i])[0]) + 1 for i in range(50)]
    assert ranks(similarity, relevant).tolist() == expected


@pytest.mark.parametrize(
    ("row", "relevant", "rank"),
    [
        ([1.0, 1.0, 1.0], 0, 3),  # an encoder that maps all to one point finds nothing
        ([0.5, 0.5, 0.1], 0, 2),
        ([0.9, 0.5, 0.1], 0, 1),
        ([0.9, -np.inf, 0.1], 1, 3),  # a product without a picture cannot be found
    ],
)
def test_ties_count_against_the_product(row: list[float], relevant: int, rank: int) -> None:
    assert ranks(np.asarray([row]), np.asarray([relevant])).tolist() == [rank]


def test_recall_and_reciprocal_rank() -> None:
    rank = np.asarray([1, 2, 10, 11])
    assert recall_at(rank, 1) == 0.25
    assert recall_at(rank, 10) == 0.75
    assert mean_reciprocal_rank(rank) == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 4)
    assert recall_at(np.empty(0), 10) == 0.0


def test_an_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    rng = np.random.default_rng(2)
    few, many = interval(rng.random(30) < 0.6), interval(rng.random(3000) < 0.6)
    for found in (few, many):
        assert found.low <= found.value <= found.high
    assert few.high - few.low > 5 * (many.high - many.low)
    assert interval(np.empty(0)).n == 0


def test_the_interval_is_the_textbook_one_for_a_share() -> None:
    values = np.arange(1000) < 300
    found = interval(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert found.low == pytest.approx(0.3 - half, abs=0.005)
    assert found.high == pytest.approx(0.3 + half, abs=0.005)


def test_a_paired_bootstrap_sees_what_unpaired_figures_cannot() -> None:
    base = np.random.default_rng(3).random(300) < 0.5
    better = base | (np.arange(300) % 20 == 0)
    found = paired_bootstrap(better, base)
    assert found.value == pytest.approx(float(better.mean() - base.mean()))
    assert found.low > 0 > interval(base).low - interval(better).high
    with pytest.raises(ValueError, match="equal lengths"):
        paired_bootstrap(base, base[:10])


def test_the_best_of_a_group() -> None:
    similarity = np.asarray([[0.1, 0.9, 0.3], [0.8, 0.2, 0.4]])
    best = best_by_group(similarity, np.asarray([2, 0, 2]), 3)
    assert best[:, 0].tolist() == [0.9, 0.2]
    assert best[:, 2].tolist() == [0.3, 0.8]
    assert np.isneginf(best[:, 1]).all()


def test_average_precision_is_the_mean_of_precision_at_every_right_answer() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        similarity, relevant = rng.random(30), np.zeros(30, bool)
        relevant[rng.choice(30, rng.integers(1, 6), replace=False)] = True
        order = relevant[np.argsort(-similarity)]
        precision = [order[: i + 1].mean() for i in range(30) if order[i]]
        assert average_precision(similarity, relevant) == pytest.approx(np.mean(precision))
    assert average_precision(np.ones(4), np.asarray([True, False, False, False])) == 0.25


def test_an_interval_over_few_products_is_wider_than_over_as_many_photos() -> None:
    groups = np.repeat(np.arange(6), 40)
    values = groups < 3  # each product is found in all of its photos or in none
    whole, photos = cluster_interval(values, groups), interval(values)
    assert whole.value == photos.value == 0.5
    assert whole.high - whole.low > 4 * (photos.high - photos.low)
    assert cluster_interval(np.empty(0), np.empty(0)).n == 0
