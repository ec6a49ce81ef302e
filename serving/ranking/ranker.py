"""Second-phase ranking: from 500 candidates to the 20 shown, in a few array operations over the candidates' columns."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from serving.contract.files import FrozenModel
from serving.contract.palette import colour_similarity
from serving.ranking.features import CategoricalColumn, Features
from serving.ranking.rules import Rules, arrange, nudges


class Weights(FrozenModel):
    """Weights of the terms, each in [0, 1], that are added to the similarity, whose own weight is 1.

    `category`: the share of a candidate's category among the nearest `voters`; `colour`: colour similarity to the photo;
    `affinity`: fit to the user's preferences; `popularity` and `in_stock`: from the columns of that name. One more term has no weight
    of its own: `same_picture` lifts a candidate whose palette is the query's to the last byte above all others. Only the picture
    itself, or a copy of it, has that: 377 photographs of groceries have 377 palettes.
    """

    category: float = 0.05
    colour: float = 0.02
    affinity: float = 0.05
    popularity: float = 0.0
    in_stock: float = 0.005

    @property
    def highest(self) -> float:
        """What no other terms together exceed: the weight of a picture that is the query's, which nothing shall outrank."""
        return self.category + self.colour + self.affinity + self.popularity + self.in_stock


class RankerConfig(FrozenModel):
    """Weights and rules; part of an index version (`ranker` in its manifest). `temperature`: decay of votes with similarity."""

    weights: Weights = Weights()
    voters: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.05, gt=0)
    rules: Rules = Rules()

    def digest(self) -> str:
        """Hash of weights and rules (12 hex digits); part of the key of every cached answer."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


Weight = Annotated[float, Field(ge=0, le=1)]


class User(FrozenModel):
    """A user's preferences: brands and categories, each with a weight in [0, 1], and a usual price."""

    brands: dict[str, Weight] = Field(default={}, max_length=100, examples=[{"Norda": 0.8}])
    categories: dict[str, Weight] = Field(default={}, max_length=100, examples=[{"Shoes": 0.5}])
    price: float | None = Field(default=None, gt=0, allow_inf_nan=False, examples=[25.0])


@dataclass(frozen=True)
class Ranked:
    """A ranked answer, best first: row handles, scores, similarities, each term's contribution, and notes of rules by place."""

    rows: np.ndarray
    score: np.ndarray
    similarity: np.ndarray
    terms: Mapping[str, np.ndarray]
    notes: Mapping[int, str]

    def match(self, own: float) -> np.ndarray:
        """Scores (n,) in [0, 1] as shares of what the most similar product would score if the query were its own picture.

        That is `own`, the similarity of a product's own picture, and the product's other terms. The order is the score's. Rules do not
        count: they move a product, and make it no better a match.
        """
        if not len(self.rows):
            return np.zeros(0)
        earned = self.score - self.terms.get("rules", 0.0)
        nearest = self.similarity.argmax()
        best = own + earned[nearest] - self.similarity[nearest]
        return np.clip(earned / max(best, 1e-6), 0.0, 1.0)


def rank(
    rows: np.ndarray,
    similarity: np.ndarray,
    features: Features,
    config: RankerConfig,
    k: int,
    user: User | None = None,
    colours: np.ndarray | None = None,
    query_row: int | None = None,
) -> Ranked:
    """Ranks a query's candidates and returns the k best: `rows` (n,) int64 handles (-1: none), `similarity` (n,) float32, best first.

    `colours` (13,) uint8 is the palette of the query's photo or product. `query_row` is the row of the query's product: it votes for its
    category but is left out of the answer.
    """
    there = rows >= 0
    rows, similarity = rows[there], similarity[there]
    weights = config.weights
    terms = {
        "similarity": similarity.astype(np.float64),
        "category": weights.category * _category_share(rows, similarity, features.category, config),
        "popularity": _weighted(weights.popularity, features.popularity, rows),
        "in_stock": _weighted(weights.in_stock, features.in_stock, rows),
    }
    if colours is not None and features.palette is not None:
        palettes = features.palette.take(rows, axis=0)
        terms["colour"] = weights.colour * colour_similarity(colours, palettes)
        same = (palettes == colours).all(axis=1)
        if same.any():
            terms["same_picture"] = same * (weights.highest + similarity.max() - similarity.astype(np.float64))
    if user is not None:
        terms["affinity"] = weights.affinity * _affinity(rows, features, user)
    if config.rules.boost or config.rules.bury:
        terms["rules"] = nudges(rows, features, config.rules)
    score = sum(terms.values(), np.zeros(len(rows)))
    best_first = np.argsort(-score, kind="stable")
    if query_row is not None:
        best_first = best_first[rows[best_first] != query_row]
    arranged = arrange(best_first, rows, features, config.rules)
    order = arranged.positions[:k]
    notes = {place: arranged.notes[p] for place, p in enumerate(order.tolist()) if p in arranged.notes}
    shares = {name: term[order] for name, term in terms.items()}
    return Ranked(rows[order], score[order], similarity[order], shares, notes)


def _weighted(weight: float, column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A column's weighted values; without weight it is not read: 500 rows of millions are 500 cache misses."""
    return weight * column[rows] if weight else np.zeros(rows.shape)


def _category_share(rows: np.ndarray, similarity: np.ndarray, category: CategoricalColumn, config: RankerConfig) -> np.ndarray:
    """Share (n,) in [0, 1] of the nearest neighbours' votes for each candidate's category: a k-NN prediction of the attribute."""
    if not len(rows):
        return np.zeros(0)
    nearest = similarity[: config.voters]
    votes = np.exp((nearest - nearest[0]) / config.temperature).astype(np.float64)
    codes = category.codes[rows]
    share = np.bincount(codes[: config.voters], votes, len(category.values))
    share[0] = 0.0  # no category
    return share[codes] / votes.sum()


def _affinity(rows: np.ndarray, features: Features, user: User) -> np.ndarray:
    """User affinity in [0, 1]: the mean over the known preferences of brand, category and price."""
    parts = []
    if user.brands:
        parts.append(_preferred(features.brand, rows, user.brands))
    if user.categories:
        parts.append(_preferred(features.category, rows, user.categories))
    if user.price:
        distance = np.abs(np.log(np.maximum(features.price[rows], 1e-9) / user.price))
        parts.append(np.nan_to_num(np.exp(-distance)))
    return np.mean(parts, axis=0) if parts else np.zeros(rows.shape)


def _preferred(column: CategoricalColumn, rows: np.ndarray, weights: dict[str, float]) -> np.ndarray:
    """Each row's weight: the largest among its names."""
    by_code = np.zeros(len(column.values))
    for name, weight in weights.items():
        for code in column.codes_by_name.get(name, ()):
            by_code[code] = max(by_code[code], weight)
    return by_code[column.codes[rows]]
