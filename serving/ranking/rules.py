"""Business rules of an index version, applied to a query's candidates as array operations."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from serving.contract.files import FrozenModel
from serving.contract.keys import product_key
from serving.ranking.features import Features
from serving.ranking.filters import Filter, check_filter, filter_mask


class BoostRule(FrozenModel):
    """Adds `by` to (boost) or subtracts it from (bury) the score of products that match `where`. Similarity is at most 1."""

    where: Filter
    by: float = Field(gt=0, le=10)


class Pin(FrozenModel):
    """Pins a product to `place` (1 is the first) in every answer among whose candidates it is."""

    product_id: str
    place: int = Field(ge=1, le=100)


class Rules(FrozenModel):
    """Rules of an answer. `require`: a filter on every query, e.g. {"in_stock": true}; applied before candidates are retrieved.

    `max_per_brand`: most products of one brand before those of others (0: no cap); those over the cap follow after. `collapse`: of
    products with the same value in this column (variants of one article) only the best is shown, or those pinned.
    """

    require: Filter | None = None
    boost: tuple[BoostRule, ...] = ()
    bury: tuple[BoostRule, ...] = ()
    pin: tuple[Pin, ...] = ()
    max_per_brand: int = Field(default=0, ge=0)
    collapse: str = ""

    def check(self, features: Features) -> None:
        """Raises FilterError when a rule's filter or column does not fit these features."""
        for wanted in [n.where for n in (*self.boost, *self.bury)] + ([self.require] if self.require else []):
            check_filter(features, wanted)
        if self.collapse:
            check_filter(features, Filter({self.collapse: {"exists": True}}))


@dataclass(frozen=True)
class Order:
    """Positions (m,) of candidates after the rules, best first, and notes on what a rule did by position."""

    positions: np.ndarray
    notes: dict[int, str]


def nudges(rows: np.ndarray, features: Features, rules: Rules) -> np.ndarray:
    """Sum of boosts and buries of each candidate, (n,) float64."""
    total = np.zeros(len(rows))
    for sign, nudged in ((1.0, rules.boost), (-1.0, rules.bury)):
        for nudge in nudged:
            total += sign * nudge.by * filter_mask(features, nudge.where, rows)
    return total


def arrange(order: np.ndarray, rows: np.ndarray, features: Features, rules: Rules) -> Order:
    """Collapses variants, caps brands and sets pins: positions `order` (n,), best first, of candidates `rows` (n,)."""
    notes: dict[int, str] = {}
    pinned = _pinned(order, features.key[rows], rules.pin) if rules.pin else {}
    if rules.collapse:
        order, hidden = _collapse(order, _groups(features, rules.collapse, rows), list(pinned))
        notes |= {p: f"stands for {n} more of its {rules.collapse}" for p, n in hidden.items()}
    if rules.max_per_brand:
        brands = features.brand.codes[rows][order]
        late = (brands != 0) & (_place_within(brands) >= rules.max_per_brand)
        order = np.concatenate([order[~late], order[late]])
        notes |= {int(p): "after others: the brand's share was reached" for p in order[len(order) - int(late.sum()) :]}
    if pinned:
        order = order[~np.isin(order, list(pinned))]
    for position, place in sorted(pinned.items(), key=lambda p: p[1]):
        order = np.insert(order, min(place - 1, len(order)), position)
        notes[position] = f"pinned at place {place}"
    return Order(order, notes)


def _pinned(order: np.ndarray, keys: np.ndarray, pins: tuple[Pin, ...]) -> dict[int, int]:
    """Places of the pinned positions in `order`; keys (n,) of all candidates."""
    places = {product_key(pin.product_id): pin.place for pin in pins}
    there = order[np.isin(keys[order], list(places))]
    return {int(p): places[int(keys[p])] for p in there}


def _groups(features: Features, column: str, rows: np.ndarray) -> np.ndarray:
    """Group number of each candidate by a column's value; -1: null."""
    if features.kind(column) in ("text", "names"):
        codes = features.categorical(column).codes[rows].astype(np.int64)
        return np.where(codes == 0, -1, codes)
    values, known = features.values(column)
    groups = np.unique(values[rows], return_inverse=True)[1]
    return np.where(known[rows], groups, -1)


def _collapse(order: np.ndarray, groups: np.ndarray, pinned: list[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Keeps each group's pinned products, else its first; with the number of hidden products by the position kept."""
    kept = np.zeros(len(groups), bool)
    kept[pinned] = True
    first = order[np.argsort(~kept[order], kind="stable")]  # each group's pinned before its others
    kept[first] |= (groups[first] < 0) | (_place_within(groups[first]) == 0)
    shown, rest = order[kept[order]], order[~kept[order]]
    names, counts = np.unique(groups[rest], return_counts=True)
    several = dict(zip(names.tolist(), counts.tolist(), strict=True))
    hidden = {int(p): several[int(groups[p])] for p in shown if int(groups[p]) in several} if several else {}
    return shown, hidden


def _place_within(groups: np.ndarray) -> np.ndarray:
    """Rank (0 first) of each element within its group."""
    by_group = np.argsort(groups, kind="stable")
    ordered = groups[by_group]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(groups)])
    places = np.empty(len(groups), np.int64)
    places[by_group] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return places
