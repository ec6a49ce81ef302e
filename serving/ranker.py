"""The second phase: from 500 candidates to the 20 that are shown. A few array operations over the candidates' columns."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from serving.contract.files import Frozen
from serving.contract.palette import alike
from serving.features import Coded, Features
from serving.rules import Rules, arrange, nudges


class Weights(Frozen):
    """What each term in [0, 1] adds to the similarity, whose own weight is 1.

    `category`: the share of a candidate's category among the nearest `voters`; `colour`: how alike its colours are to the
    photo's; `affinity`: how well it fits what the user prefers; `popularity` and `in_stock`: small nudges.
    """

    category: float = 0.05
    colour: float = 0.02
    affinity: float = 0.05
    popularity: float = 0.0
    in_stock: float = 0.005


class RankerConfig(Frozen):
    """Weights and rules; part of an index version (`ranker` in its manifest). `temperature`: how fast a voter's vote falls."""

    weights: Weights = Weights()
    voters: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.05, gt=0)
    rules: Rules = Rules()

    def digest(self) -> str:
        """Names these weights and rules; part of the key of every cached answer."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


Weight = Annotated[float, Field(ge=0, le=1)]


class User(Frozen):
    """What is known of who asks: preferred brands and categories, each with a weight in [0, 1], and a usual price."""

    brands: dict[str, Weight] = Field(default={}, max_length=100, examples=[{"Norda": 0.8}])
    categories: dict[str, Weight] = Field(default={}, max_length=100, examples=[{"Shoes": 0.5}])
    price: float | None = Field(default=None, gt=0, allow_inf_nan=False, examples=[25.0])


@dataclass(frozen=True)
class Ranked:
    """The answer, best first: row handles, scores, similarities, each term's contribution, and by place what a rule did."""

    rows: np.ndarray
    score: np.ndarray
    similarity: np.ndarray
    terms: Mapping[str, np.ndarray]
    notes: Mapping[int, str]


def rank(
    rows: np.ndarray,
    similarity: np.ndarray,
    features: Features,
    config: RankerConfig,
    k: int,
    user: User | None = None,
    colours: np.ndarray | None = None,
    own: int | None = None,
) -> list[Ranked]:
    """The k best of each query's candidates: `rows` (nq, n) int64 handles (-1: none) with `similarity` (nq, n) float32, best first.

    Each query is ranked as by itself, to the last bit. `colours` (nq, 13) uint8 are the palettes of the photos or products that
    were asked with. `user` asks all of them, and `own` is the row of the product that all are about: it votes for its category, and
    has no place in the answer.
    """
    there = rows >= 0
    if not there.all():
        palettes = [None] * len(rows) if colours is None else colours[:, None]
        each = zip(rows, similarity, there, palettes, strict=True)
        return [rank(r[None, t], s[None, t], features, config, k, user, p, own)[0] for r, s, t, p in each]
    weights = config.weights
    terms = {
        "similarity": similarity.astype(np.float64),
        "category": weights.category * _category_share(rows, similarity, features.category, config),
        "popularity": _weighted(weights.popularity, features.popularity, rows),
        "in_stock": _weighted(weights.in_stock, features.in_stock, rows),
    }
    if colours is not None and features.palette is not None:
        terms["colour"] = weights.colour * alike(colours, features.palette.take(rows, axis=0))
    if user is not None:
        terms["affinity"] = weights.affinity * _affinity(rows, features, user)
    if config.rules.boost or config.rules.bury:
        terms["rules"] = nudges(rows.ravel(), features, config.rules).reshape(rows.shape)
    score = sum(terms.values(), np.zeros(rows.shape))
    ordered = np.argsort(-score, axis=1, kind="stable")
    ranked = []
    for query, best_first in enumerate(ordered):
        candidates = rows[query]
        if own is not None:
            best_first = best_first[candidates[best_first] != own]
        arranged = arrange(best_first, candidates, features, config.rules)
        order = arranged.positions[:k]
        notes = {place: arranged.notes[p] for place, p in enumerate(order.tolist()) if p in arranged.notes}
        shares = {name: term[query, order] for name, term in terms.items()}
        ranked.append(Ranked(candidates[order], score[query, order], similarity[query, order], shares, notes))
    return ranked


def _weighted(weight: float, column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What a column adds; one without weight is not read: 500 rows of millions are 500 cache misses."""
    return weight * column[rows] if weight else np.zeros(rows.shape)


def _category_share(rows: np.ndarray, similarity: np.ndarray, category: Coded, config: RankerConfig) -> np.ndarray:
    """How much of its query's nearest neighbours' vote a candidate's own category got, (nq, n) in [0, 1]: the predicted attribute."""
    queries, names = len(rows), len(category.values)
    nearest = similarity[:, : config.voters]
    votes = np.exp((nearest - nearest[:, :1]) / config.temperature).astype(np.float64)
    ballots = category.codes[rows] + names * np.arange(queries)[:, None]  # every query's categories are counted by themselves
    share = np.bincount(ballots[:, : config.voters].ravel(), votes.ravel(), queries * names)
    share[::names] = 0.0
    return share[ballots] / votes.sum(axis=1, keepdims=True)


def _affinity(rows: np.ndarray, features: Features, user: User) -> np.ndarray:
    """Preference in [0, 1]: the mean of what is known of brand, category and price."""
    parts = []
    if user.brands:
        parts.append(_preferred(features.brand, rows, user.brands))
    if user.categories:
        parts.append(_preferred(features.category, rows, user.categories))
    if user.price:
        distance = np.abs(np.log(np.maximum(features.price[rows], 1e-9) / user.price))
        parts.append(np.nan_to_num(np.exp(-distance)))
    return np.mean(parts, axis=0) if parts else np.zeros(rows.shape)


def _preferred(column: Coded, rows: np.ndarray, weights: dict[str, float]) -> np.ndarray:
    """Each row's weight: the largest among the names it has."""
    by_code = np.zeros(len(column.values))
    for name, weight in weights.items():
        for code in column.having.get(name, ()):
            by_code[code] = max(by_code[code], weight)
    return by_code[column.codes[rows]]
