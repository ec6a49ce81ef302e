"""What a search gives, and putting the results of several parts together: exact and stable."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SHARE_SIGMAS, SHARE_LEAST = 5, 8
"""A part that holds a share p of the rows is first asked for 5 standard deviations more than p * k (rows are spread by a hash)."""


@dataclass(frozen=True)
class Found:
    """The nearest rows of each query, best first: `similarity` (nq, k) float32, `rows` (nq, k) int64 (-1: none).

    `missing`: how many shards a gateway had no answer from; what they hold is not among the rows.
    """

    similarity: np.ndarray
    rows: np.ndarray
    missing: int = 0


@dataclass(frozen=True)
class Source:
    """One part that is searched: `ask(which, k)` gives the k nearest of the queries `which` (n,) int; it holds `share` of all rows."""

    ask: Callable[[np.ndarray, int], Found]
    share: float


def merge(found: list[Found], k: int) -> Found:
    """The best k of several results over disjoint rows; equal similarities are ordered by row, so the order is stable."""
    similarity = np.concatenate([f.similarity for f in found], axis=1)
    rows = np.concatenate([f.rows for f in found], axis=1)
    similarity = np.where(rows < 0, np.float32(-np.inf), similarity)
    order = np.argsort(-similarity, axis=1)
    falling = np.take_along_axis(similarity, order, 1)
    for tied in np.flatnonzero((falling[:, 1:] == falling[:, :-1]).any(axis=1)):  # by two keys it takes several times as long
        order[tied] = np.lexsort((rows[tied], -similarity[tied]))
    order = order[:, :k]
    return padded(Found(np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)), k)


def padded(found: Found, k: int) -> Found:
    """The same with at least k columns: nothing after what there is."""
    nq, there = found.rows.shape
    if there >= k:
        return found
    wide = nothing(nq, k)  # np.pad takes ten times as long
    wide.similarity[:, :there], wide.rows[:, :there] = found.similarity, found.rows
    return wide


def one_above_the_other(found: list[Found], k: int = 0) -> Found:
    """The results of one query each as those of several: with as many columns as the widest has, and k at least."""
    if len(found) == 1:
        return padded(found[0], k)
    columns = max([k, *(f.rows.shape[1] for f in found)])
    wide = [padded(f, columns) for f in found]
    return Found(np.concatenate([f.similarity for f in wide]), np.concatenate([f.rows for f in wide])) if wide else nothing(0, k)


def gather(sources: list[Source], nq: int, k: int) -> Found:
    """The best k over all sources, the same as if each were asked for k, for little more than the work of one."""
    return merge(shares(sources, nq, k)[0], k)


def shares(sources: list[Source], nq: int, k: int) -> tuple[list[Found], np.ndarray]:
    """What each source gave until all of the best k were there, and how similar the last of these is, (nq,).

    Each is first asked for its share of k and a margin. One whose every answer is among the best k may hold more of them, and
    is asked again for k; what the others did not name cannot be better than their last answer, which is not among the best k.
    """
    everyone = np.arange(nq)
    if len(sources) == 1:
        only = sources[0].ask(everyone, k)
        return [only], np.where(only.rows[:, -1] < 0, np.float32(-np.inf), only.similarity[:, -1])
    asked = [_quota(s.share, k) for s in sources]
    found = [s.ask(everyone, n) for s, n in zip(sources, asked, strict=True)]
    worst = _last(found, k)
    again = False
    for number, source in enumerate(sources):
        if asked[number] >= k:
            continue
        last, there = found[number].similarity[:, -1], found[number].rows[:, -1] >= 0
        unproven = np.flatnonzero(there & (last >= worst))
        if len(unproven):
            again = True
            more = source.ask(unproven, k)
            found[number] = _replaced(found[number], unproven, more, k)
    return found, _last(found, k) if again else worst


def _last(found: list[Found], k: int) -> np.ndarray:
    """How similar the k-th best row of each query is, (nq,); -inf where there are not so many."""
    similarity = np.concatenate([np.where(f.rows < 0, np.float32(-np.inf), f.similarity) for f in found], axis=1)
    beyond = similarity.shape[1] - k
    if beyond < 0:
        return np.full(len(similarity), -np.inf, np.float32)
    return np.partition(similarity, beyond, axis=1)[:, beyond]


def nothing(nq: int, k: int) -> Found:
    """No row for any query."""
    return Found(np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64))


def _quota(share: float, k: int) -> int:
    expected = share * k
    return min(k, int(np.ceil(expected + SHARE_SIGMAS * expected**0.5)) + SHARE_LEAST)


def _replaced(found: Found, which: np.ndarray, better: Found, k: int) -> Found:
    """`found` with k columns, in which the queries `which` have `better`'s rows."""
    wide = padded(found, k)
    wide.similarity[which], wide.rows[which] = better.similarity, better.rows
    return wide
