"""The second phase against a plain reading of its definition, one product at a time."""

import math

import numpy as np
import pyarrow as pa
import pytest

from serving.features import Features
from serving.ranker import RankerConfig, User, rank

CATEGORIES = [["Home", "Mugs"], ["Home", "Lamps"], ["Shoes"], []]
BRANDS = ["Norda", "Vela", "", "Kiso"]


def shop(n: int = 60, seed: int = 0) -> tuple[Features, pa.Table]:
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "key": np.arange(n),
            "product_id": [f"p{i}" for i in range(n)],
            "title": [f"thing {i}" for i in range(n)],
            "brand": [BRANDS[i] for i in rng.integers(0, 4, n)],
            "category": pa.array([CATEGORIES[i] for i in rng.integers(0, 4, n)], pa.list_(pa.string())),
            "price": [None if i % 11 == 0 else float(i + 1) for i in range(n)],
            "currency": ["EUR"] * n,
            "in_stock": rng.random(n) < 0.7,
            "popularity": rng.random(n).astype(np.float32),
        }
    )
    return Features(table), table


def one_at_a_time(
    rows: np.ndarray, similarity: np.ndarray, table: pa.Table, config: RankerConfig, user: User | None
) -> dict[int, float]:
    """Scores by the words of RankerConfig, without arrays."""
    items = table.to_pylist()
    kept = [
        (int(r), float(s))
        for r, s in zip(rows, similarity, strict=True)
        if r >= 0 and not (config.require_in_stock and not items[r]["in_stock"])
    ]
    nearest = sorted(kept, key=lambda rs: -rs[1])[: config.voters]
    votes = {r: math.exp((s - nearest[0][1]) / config.temperature) for r, s in nearest}
    scores = {}
    for r, s in kept:
        own = items[r]["category"]
        share = sum(v for n, v in votes.items() if own and items[n]["category"] == own) / sum(votes.values())
        score = s + config.category * share + config.popularity * items[r]["popularity"] + config.in_stock * items[r]["in_stock"]
        if user is not None:
            parts = []
            if user.brands:
                parts.append(user.brands.get(items[r]["brand"], 0.0))
            if user.categories:
                parts.append(max(user.categories.get(own[0] if own else "", 0.0), user.categories.get(" > ".join(own), 0.0)))
            if user.price:
                price = items[r]["price"]
                parts.append(0.0 if price is None else math.exp(-abs(math.log(price / user.price))))
            score += config.affinity * (sum(parts) / len(parts) if parts else 0.0)
        score += config.boost.get(items[r]["product_id"], 0.0) - config.bury.get(items[r]["product_id"], 0.0)
        scores[r] = score
    return scores


@pytest.mark.parametrize(
    ("config", "user"),
    [
        (RankerConfig(), None),
        (RankerConfig(category=0.4, popularity=0.2, in_stock=0.1), None),
        (RankerConfig(require_in_stock=True), None),
        (RankerConfig(boost={"p3": 0.5}, bury={"p7": 0.9, "p3": 0.1}), None),
        (RankerConfig(affinity=0.5), User(brands={"Norda": 1.0, "nobody": 0.5})),
        (RankerConfig(affinity=0.5), User(categories={"Home": 0.7, "Home > Mugs": 1.0}, price=20.0)),
        (RankerConfig(affinity=0.5, voters=3, temperature=0.01), User(brands={"Vela": 0.3}, categories={"Shoes": 1}, price=5)),
        (RankerConfig(affinity=0.5), User()),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_what_the_words_say(config: RankerConfig, user: User | None, seed: int) -> None:
    features, table = shop(seed=seed)
    rng = np.random.default_rng(seed)
    rows = np.append(rng.permutation(60)[:40], [-1, -1])
    similarity = -np.sort(-rng.random(42).astype(np.float32))
    found = rank(rows, similarity, features, config, 20, user)
    expected = one_at_a_time(rows, similarity, table, config, user)
    best = sorted(expected.values(), reverse=True)[:20]
    assert found.score == pytest.approx(best, abs=1e-6)
    assert found.score == pytest.approx([expected[int(r)] for r in found.rows], abs=1e-6)
    assert np.sum(list(found.terms.values()), axis=0) == pytest.approx(found.score)


def test_a_brand_fills_no_more_than_its_share_while_others_are_there() -> None:
    features, table = shop()
    rows, similarity = np.arange(60), np.linspace(1, 0, 60).astype(np.float32)
    brands = table["brand"].to_pylist()
    found = rank(rows, similarity, features, RankerConfig(category=0, in_stock=0, max_per_brand=2), 12)
    shown = [brands[r] for r in found.rows if brands[r]]
    assert all(shown.count(b) <= 2 for b in set(shown))
    assert len(found.rows) == 12
    plenty = rank(rows, similarity, features, RankerConfig(category=0, in_stock=0, max_per_brand=1), 60)
    assert sorted(plenty.rows) == list(range(60))  # over the cap comes later, never not at all


def test_nothing_in_gives_nothing_out() -> None:
    features, _ = shop()
    found = rank(np.full(5, -1), np.full(5, -np.inf, np.float32), features, RankerConfig(), 20, User(price=3.0))
    assert len(found.rows) == 0


def test_equal_scores_keep_the_order_they_came_in() -> None:
    features, _ = shop()
    rows = np.array([9, 4, 30, 2])
    found = rank(rows, np.full(4, 0.5, np.float32), features, RankerConfig(category=0, in_stock=0), 4)
    assert found.rows.tolist() == [9, 4, 30, 2]
