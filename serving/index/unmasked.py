"""For engines that take no row masks: how many rows to fetch, and dropping those that a mask excludes.

The k that are left are the k nearest allowed of all that the engine ranks, however few were fetched; where fewer are left, the query
comes up short and the Searcher asks wider, at last exactly.
"""

import math

import numpy as np

from serving.index.engine import Mask
from serving.index.merge import OVER_FETCH_MIN, OVER_FETCH_SIGMAS, Neighbors, merge


def over_fetch(rows: int, k: int, allowed: int, effort: int = 1) -> int:
    """How many of `rows` to fetch so that k of the `allowed` ones are most probably among them; `effort` widens it.

    Never more than k and all excluded rows, which hold k allowed ones for certain. The first effort of the Searcher already grows
    with the share of excluded rows, as this does: only what goes beyond it counts.
    """
    share = allowed / rows
    likely = math.ceil((k + OVER_FETCH_SIGMAS * math.sqrt(k)) / share) + OVER_FETCH_MIN
    return min(likely * max(1, round(effort * share)), k + rows - allowed)


def best_allowed(found: Neighbors, k: int, mask: Mask | None) -> Neighbors:
    """The best k (or as many as there are columns) of each query that the mask allows, best first, -1 where there are fewer."""
    if mask is not None:
        allowed = (found.rows >= 0) & mask.allowed[np.maximum(found.rows, 0)]
        found = Neighbors(found.similarity, np.where(allowed, found.rows, -1))
    return merge([found], k)
