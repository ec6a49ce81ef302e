"""The second phase: from 500 candidates to the 20 that are shown. A few array operations over the candidates' columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from serving.contract.files import Frozen
from serving.features import Features


class RankerConfig(Frozen):
    """Weights and rules; part of an index version (`ranker` in its manifest). Similarity has weight 1.

    `category`: for the share that a candidate's category has among the nearest `voters`; `affinity`: for what the user prefers;
    `popularity`, `in_stock`: small nudges; `require_in_stock` hides the rest; `max_per_brand`: diversity cap within the answer
    (0: none); `boost` and `bury`: added or taken per product id.
    """

    category: float = 0.05
    voters: int = 20
    temperature: float = 0.05
    affinity: float = 0.05
    popularity: float = 0.0
    in_stock: float = 0.005
    require_in_stock: bool = False
    max_per_brand: int = 0
    boost: dict[str, float] = {}
    bury: dict[str, float] = {}


Weight = Annotated[float, Field(ge=0, le=1)]


class User(Frozen):
    """What is known of who asks: preferred brands and categories, each with a weight in [0, 1], and a usual price."""

    brands: dict[str, Weight] = {}
    categories: dict[str, Weight] = {}
    price: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Ranked:
    """The answer, best first: row handles, scores, similarities, and each term's contribution."""

    rows: np.ndarray
    score: np.ndarray
    similarity: np.ndarray
    terms: Mapping[str, np.ndarray]


def rank(
    rows: np.ndarray, similarity: np.ndarray, features: Features, config: RankerConfig, k: int, user: User | None = None
) -> Ranked:
    """The k best of one query's candidates: `rows` (n,) int64 handles (-1: none) with `similarity` (n,) float32."""
    there = rows >= 0
    if config.require_in_stock:
        there &= features.in_stock[np.maximum(rows, 0)]
    rows, similarity = rows[there], similarity[there]
    terms = {
        "similarity": similarity.astype(np.float64),
        "category": config.category * _category_share(rows, similarity, features, config),
        "popularity": config.popularity * features.popularity[rows],
        "in_stock": config.in_stock * features.in_stock[rows],
    }
    if user is not None:
        terms["affinity"] = config.affinity * _affinity(rows, features, user)
    if config.boost or config.bury:
        terms["rules"] = _rules(rows, features, config)
    score = np.sum(list(terms.values()), axis=0) if len(rows) else np.zeros(0)
    order = np.argsort(-score, kind="stable")
    order = _diverse(order, features.brand[rows], config.max_per_brand, k)[:k]
    return Ranked(rows[order], score[order], similarity[order], {name: term[order] for name, term in terms.items()})


def _category_share(rows: np.ndarray, similarity: np.ndarray, features: Features, config: RankerConfig) -> np.ndarray:
    """How much of the nearest neighbours' vote a candidate's own category got, in [0, 1]: the predicted attribute."""
    if not len(rows):
        return np.zeros(0)
    leaves = features.leaf[rows]
    nearest = np.argsort(-similarity, kind="stable")[: config.voters]
    votes = np.exp((similarity[nearest] - similarity[nearest[0]]) / config.temperature).astype(np.float64)
    share = np.zeros(len(features.leaves))
    np.add.at(share, leaves[nearest], votes)
    share[0] = 0.0
    return share[leaves] / votes.sum()


def _affinity(rows: np.ndarray, features: Features, user: User) -> np.ndarray:
    """Preference in [0, 1]: the mean of what is known of brand, category and price."""
    parts = []
    if user.brands:
        parts.append(_lookup(features.brands, user.brands)[features.brand[rows]])
    if user.categories:
        parts.append(
            np.maximum(
                _lookup(features.tops, user.categories)[features.top[rows]],
                _lookup(features.leaves, user.categories)[features.leaf[rows]],
            )
        )
    if user.price:
        distance = np.abs(np.log(np.maximum(features.price[rows], 1e-9) / user.price))
        parts.append(np.nan_to_num(np.exp(-distance)))
    return np.mean(parts, axis=0) if parts else np.zeros(len(rows))


def _lookup(names: list[str], weights: dict[str, float]) -> np.ndarray:
    return np.array([weights.get(n, 0.0) for n in names])


def _rules(rows: np.ndarray, features: Features, config: RankerConfig) -> np.ndarray:
    change = {p: config.boost.get(p, 0.0) - config.bury.get(p, 0.0) for p in {*config.boost, *config.bury}}
    return np.array([change.get(r["product_id"], 0.0) for r in features.take(rows, ["product_id"])])


def _diverse(order: np.ndarray, brands: np.ndarray, cap: int, k: int) -> np.ndarray:
    """At most `cap` of each brand among the first k; what is over the cap follows after."""
    if cap <= 0:
        return order
    seen: dict[int, int] = {}
    kept: list[int] = []
    later: list[int] = []
    for position in order:
        brand = int(brands[position])
        seen[brand] = seen.get(brand, 0) + 1
        (kept if brand == 0 or seen[brand] <= cap else later).append(position)
    return np.array([*kept, *later][: max(k, len(kept))], np.int64)
