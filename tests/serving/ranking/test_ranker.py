"""The second phase against a plain reading of its definition, one product at a time."""

import math

import numpy as np
import pyarrow as pa
import pytest

from serving.contract.keys import product_keys
from serving.contract.palette import NAMES, PALETTE
from serving.contract.segments import fixed_column
from serving.ranking.features import Features
from serving.ranking.filters import Filter
from serving.ranking.ranker import RankerConfig, User, Weights, rank
from serving.ranking.rules import BoostRule, Pin, Rules

CATEGORIES = [["Home", "Mugs"], ["Home", "Lamps"], ["Shoes"], []]
BRANDS = ["Norda", "Vela", "", "Kiso"]


def shop(n: int = 60, seed: int = 0) -> tuple[Features, pa.Table]:
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "key": product_keys(f"p{i}" for i in range(n)),
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


def test_a_match_is_the_scores_share_of_what_the_products_own_picture_would_score() -> None:
    features, _ = shop()
    rows, similarity = np.arange(40), np.linspace(0.8, 0.3, 40).astype(np.float32)
    config = RankerConfig(weights=Weights(popularity=0.3))
    ranked = rank(rows, similarity, features, config, 20)
    match = ranked.match(0.8)
    assert (np.diff(match) <= 0).all(), "in the order of the scores"
    assert match[0] <= 1
    nearest = ranked.similarity.argmax()
    best = 0.8 + ranked.score[nearest] - ranked.similarity[nearest]
    assert match == pytest.approx(np.minimum(1, ranked.score / best))
    assert match[nearest] == pytest.approx(ranked.score[nearest] / best)
    perfect = rank(rows[:1], similarity[:1], features, config, 1)
    assert perfect.match(0.8).tolist() == [pytest.approx(1.0)], "as similar as its own picture is"
    assert ranked.match(0.1).max() == 1.0, "never above 1"
    assert rank(rows[:0], similarity[:0], features, config, 5).match(0.8).shape == (0,)


def test_every_weight_counts_in_what_a_copy_of_the_picture_must_exceed() -> None:
    names = list(Weights.model_fields)
    assert Weights(**{name: 2.0**n for n, name in enumerate(names)}).highest == 2.0 ** len(names) - 1


def test_the_querys_own_picture_is_outranked_by_nothing() -> None:
    _, table = shop()
    palettes = np.random.default_rng(3).integers(0, 60, (60, len(NAMES))).astype(np.uint8)
    features = Features(table.append_column(PALETTE, fixed_column(palettes)))
    rows, similarity = np.arange(40), np.full(40, 0.8, np.float32)
    similarity[0] = 0.81
    config = RankerConfig(weights=Weights(category=0.3, popularity=0.3))
    assert rank(rows, similarity, features, config, 5, colours=palettes[50]).rows[0] != 0
    own = rank(rows, similarity, features, config, 5, colours=palettes[0])
    assert (own.rows[0], own.match(0.81)[0]) == (0, 1.0)
    assert own.terms["same_picture"].tolist() == pytest.approx([config.weights.highest, 0, 0, 0, 0])
    similarity[30] = 0.2
    far = rank(rows, similarity, features, config, 5, colours=palettes[30])
    assert (far.rows[0], far.match(0.81)[0]) == (30, 1.0), "however badly the encoder knows it"
    assert far.terms["same_picture"][0] == pytest.approx(config.weights.highest + 0.61)


def test_a_rule_moves_a_product_and_makes_it_no_better_a_match() -> None:
    features, table = shop()
    rows, similarity = np.arange(40), np.linspace(0.8, 0.3, 40).astype(np.float32)
    last = table["product_id"][39].as_py()
    plain, ruled = (
        rank(rows, similarity, features, RankerConfig(rules=rules), 40)
        for rules in (Rules(), Rules(boost=(BoostRule(where=Filter({"product_id": last}), by=5),)))
    )
    assert ruled.rows[0] == 39 != plain.rows[0]
    by_row = dict(zip(plain.rows.tolist(), plain.match(0.8).tolist(), strict=True))
    assert ruled.match(0.8).tolist() == pytest.approx([by_row[r] for r in ruled.rows.tolist()])


def one_at_a_time(
    rows: np.ndarray, similarity: np.ndarray, table: pa.Table, config: RankerConfig, user: User | None
) -> dict[int, float]:
    """Scores by the words of RankerConfig, without arrays."""
    items = table.to_pylist()
    kept = [(int(r), float(s)) for r, s in zip(rows, similarity, strict=True) if r >= 0]
    nearest = sorted(kept, key=lambda rs: -rs[1])[: config.voters]
    votes = {r: math.exp((s - nearest[0][1]) / config.temperature) for r, s in nearest}
    scores = {}
    for r, s in kept:
        query_row = items[r]["category"]
        share = sum(v for n, v in votes.items() if query_row and items[n]["category"] == query_row) / sum(votes.values())
        weights = config.weights
        score = (
            s + weights.category * share + weights.popularity * items[r]["popularity"] + weights.in_stock * items[r]["in_stock"]
        )
        if user is not None:
            parts = []
            if user.brands:
                parts.append(user.brands.get(items[r]["brand"], 0.0))
            if user.categories:
                parts.append(max([user.categories.get(name, 0.0) for name in [*query_row, " > ".join(query_row)]]))
            if user.price:
                price = items[r]["price"]
                parts.append(0.0 if price is None else math.exp(-abs(math.log(price / user.price))))
            score += weights.affinity * (sum(parts) / len(parts) if parts else 0.0)
        for sign, nudged in ((1, config.rules.boost), (-1, config.rules.bury)):
            score += sum(sign * n.by for n in nudged if one_matches(items[r], n.where.root))
        scores[r] = score
    return scores


def one_matches(item: dict, where: dict) -> bool:
    """The few filters of these tests, by their words."""
    ((column, wanted),) = where.items()
    if isinstance(wanted, dict):
        return item[column] is not None and item[column] < wanted["lt"]
    return item[column] in (wanted if isinstance(wanted, list) else [wanted])


def boost(where: dict, by: float) -> BoostRule:
    return BoostRule(where=Filter(where), by=by)


@pytest.mark.parametrize(
    ("config", "user"),
    [
        (RankerConfig(), None),
        (RankerConfig(weights=Weights(category=0.4, popularity=0.2, in_stock=0.1)), None),
        (
            RankerConfig(
                rules=Rules(boost=(boost({"product_id": "p3"}, 0.5),), bury=(boost({"product_id": ["p7", "p3"]}, 0.9),))
            ),
            None,
        ),
        (RankerConfig(rules=Rules(boost=(boost({"brand": "Vela"}, 0.2), boost({"price": {"lt": 20}}, 0.1)))), None),
        (RankerConfig(weights=Weights(affinity=0.5)), User(brands={"Norda": 1.0, "nobody": 0.5})),
        (RankerConfig(weights=Weights(affinity=0.5)), User(categories={"Home": 0.7, "Home > Mugs": 1.0}, price=20.0)),
        (
            RankerConfig(weights=Weights(affinity=0.5), voters=3, temperature=0.01),
            User(brands={"Vela": 0.3}, categories={"Shoes": 1}, price=5),
        ),
        (RankerConfig(weights=Weights(affinity=0.5)), User()),
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


PLAIN = Weights(category=0, in_stock=0)


def test_a_brand_fills_no_more_than_its_share_while_others_are_there() -> None:
    features, table = shop()
    rows, similarity = np.arange(60), np.linspace(1, 0, 60).astype(np.float32)
    brands = table["brand"].to_pylist()
    found = rank(rows, similarity, features, RankerConfig(weights=PLAIN, rules=Rules(max_per_brand=2)), 12)
    shown = [brands[r] for r in found.rows if brands[r]]
    assert all(shown.count(b) <= 2 for b in set(shown))
    assert len(found.rows) == 12
    plenty = rank(rows, similarity, features, RankerConfig(weights=PLAIN, rules=Rules(max_per_brand=1)), 60)
    assert sorted(plenty.rows) == list(range(60))  # over the cap comes later, never not at all
    assert all("share was reached" in plenty.notes[place] for place in plenty.notes)
    late = [r for place, r in enumerate(plenty.rows) if place in plenty.notes]
    assert late == sorted(late)  # and in order of score


def test_of_variants_the_best_stands_for_the_others() -> None:
    features, table = shop()
    article = [f"a{i // 4}" if i % 5 else None for i in range(60)]
    features = Features(table.append_column("article", pa.array(article)))
    rows, similarity = np.arange(60)[::-1].copy(), np.linspace(1, 0, 60).astype(np.float32)
    found = rank(rows, similarity, features, RankerConfig(weights=PLAIN, rules=Rules(collapse="article")), 60)
    expected, seen = [], set()
    for r in rows:
        if article[r] is None or article[r] not in seen:
            expected.append(r)
            seen.add(article[r])
    assert found.rows.tolist() == expected
    first = found.notes[0]
    assert first == f"stands for {article.count(article[59]) - 1} more of its article"


def test_a_pinned_product_takes_its_place_only_among_the_candidates() -> None:
    features, _ = shop()
    rules = Rules(pin=(Pin(product_id="p9", place=2), Pin(product_id="p4", place=1), Pin(product_id="p55", place=1)))
    found = rank(np.arange(20), np.linspace(1, 0, 20).astype(np.float32), features, RankerConfig(weights=PLAIN, rules=rules), 4)
    assert found.rows.tolist() == [4, 9, 0, 1]
    assert found.notes == {0: "pinned at place 1", 1: "pinned at place 2"}


def test_the_product_asked_about_votes_and_takes_no_place_from_others() -> None:
    features, table = shop()
    brands = table["brand"].to_pylist()
    rows, similarity = np.arange(60), np.linspace(1, 0, 60).astype(np.float32)
    query_row = next(r for r in range(60) if brands[r])
    others = rows[rows != query_row]
    pins = (Pin(product_id=f"p{query_row}", place=1), Pin(product_id="p40", place=2))
    config = RankerConfig(weights=PLAIN, rules=Rules(max_per_brand=1, pin=pins))
    found = rank(rows, similarity, features, config, 60, query_row=query_row)
    assert found.rows.tolist() == rank(others, similarity[others], features, config, 60).rows.tolist()
    assert (found.rows[1], found.notes[1]) == (40, "pinned at place 2")
    everyone = rank(rows, similarity, features, RankerConfig(), 60)
    alone = rank(rows, similarity, features, RankerConfig(), 60, query_row=query_row)
    assert alone.score.tolist() == everyone.score[everyone.rows != query_row].tolist()


def test_a_pinned_variant_stands_for_its_article() -> None:
    features, table = shop()
    features = Features(table.append_column("article", pa.array([f"a{i // 4}" for i in range(60)])))
    rows, similarity = np.arange(60), np.linspace(1, 0, 60).astype(np.float32)
    pins = (Pin(product_id="p6", place=1), Pin(product_id="p9", place=5), Pin(product_id="p10", place=7))
    config = RankerConfig(weights=PLAIN, rules=Rules(collapse="article", pin=pins))
    found = rank(rows, similarity, features, config, 60)
    assert found.rows.tolist() == [6, 0, 12, 16, 9, 20, 10, *range(24, 60, 4)]
    assert [found.notes[n] for n in (0, 1, 4)] == ["pinned at place 1", "stands for 3 more of its article", "pinned at place 5"]


def test_pins_hold_their_places_over_caps_and_one_another() -> None:
    features, _ = shop()
    rows, similarity = np.arange(60), np.linspace(1, 0, 60).astype(np.float32)
    pins = (Pin(product_id="p50", place=3), Pin(product_id="p0", place=4), Pin(product_id="p51", place=1))
    found = rank(rows, similarity, features, RankerConfig(weights=PLAIN, rules=Rules(max_per_brand=1, pin=pins)), 60)
    assert found.rows[[0, 2, 3]].tolist() == [51, 50, 0]
    assert [found.notes[n] for n in (0, 2, 3)] == [f"pinned at place {n}" for n in (1, 3, 4)]
    assert sorted(found.rows) == list(range(60))


def test_colours_alike_count_where_both_are_known() -> None:
    features, table = shop()
    palettes = np.zeros((60, len(NAMES)), np.uint8)
    palettes[:, NAMES.index("grey")] = 255
    palettes[7] = 0
    palettes[7, NAMES.index("red")] = 255
    palettes[8] = 0
    features = Features(table.append_column(PALETTE, fixed_column(palettes)))
    config = RankerConfig(weights=Weights(category=0, in_stock=0, colour=0.3))
    found = rank(np.arange(12), np.full(12, 0.5, np.float32), features, config, 12, colours=palettes[7])
    assert found.rows[0] == 7
    assert found.terms["colour"][0] == pytest.approx(0.3)
    assert found.terms["colour"][found.rows.tolist().index(8)] == 0
    assert "colour" not in rank(np.arange(12), np.full(12, 0.5, np.float32), features, config, 12).terms


def test_nothing_in_gives_nothing_out() -> None:
    features, _ = shop()
    rules = Rules(max_per_brand=1, collapse="brand", boost=(boost({"brand": "Vela"}, 1),), pin=(Pin(product_id="p1", place=1),))
    for config in (RankerConfig(), RankerConfig(rules=rules)):
        found = rank(np.full(5, -1), np.full(5, -np.inf, np.float32), features, config, 20, User(price=3.0))
        assert len(found.rows) == 0


def test_equal_scores_keep_the_order_they_came_in() -> None:
    features, _ = shop()
    rows = np.array([9, 4, 30, 2])
    found = rank(rows, np.full(4, 0.5, np.float32), features, RankerConfig(weights=PLAIN), 4)
    assert found.rows.tolist() == [9, 4, 30, 2]


def test_other_weights_or_rules_are_another_ranker() -> None:
    configs = [RankerConfig(), RankerConfig(voters=21), RankerConfig(rules=Rules(boost=(boost({"brand": "Vela"}, 0.1),)))]
    assert len({c.digest() for c in configs}) == 3
    assert RankerConfig.model_validate(configs[2].model_dump()).digest() == configs[2].digest()
