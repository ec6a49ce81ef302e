"""Neighbors, the result of a search, and the exact merge of the top-k lists of disjoint partitions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

OVER_FETCH_SIGMAS, OVER_FETCH_MIN = 5, 8
"""Of a partition that holds a share p of the rows, p * k + 5 standard deviations are fetched first (rows are spread by a hash)."""


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of each query, best first: `similarity` (nq, k) float32, `rows` (nq, k) int64 (-1: none). FAISS's D and I.

    `missing`: how many shards a gateway had no answer from; what they hold is not among the rows. `pictures` (nq, k) int16: which picture
    of the row's product matched, by its position; None: the main one everywhere.
    """

    similarity: np.ndarray
    rows: np.ndarray
    missing: int = 0
    pictures: np.ndarray | None = None

    def pictures_of(self, rows: np.ndarray) -> np.ndarray:
        """Which picture of each of these rows (n,) matched the first query, (n,) int16; 0 for rows that are not among its own."""
        if self.pictures is None or not self.rows.shape[1]:
            return np.zeros(len(rows), np.int16)
        order = np.argsort(self.rows[0])
        place = order[np.searchsorted(self.rows[0], rows, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.rows[0][place] == rows, self.pictures[0][place], 0).astype(np.int16)


@dataclass(frozen=True)
class Partition:
    """One partition of the rows: `search(which, k)` gives the k nearest of the queries `which` (n,) int; it holds `share` of all rows."""

    search: Callable[[np.ndarray, int], Neighbors]
    share: float


def merge(results: list[Neighbors], k: int) -> Neighbors:
    """Merges results over disjoint rows to the best k; equal similarities are ordered by row, so the order is stable."""
    if len(results) == 1 and _is_sorted(results[0]):
        return pad(head(results[0], k), k)
    similarity = np.concatenate([f.similarity for f in results], axis=1)
    rows = np.concatenate([f.rows for f in results], axis=1)
    similarity = np.where(rows < 0, np.float32(-np.inf), similarity)
    order, queries = np.argsort(-similarity, axis=1), np.arange(len(rows))[:, None]
    falling = similarity[queries, order]
    for tied in np.flatnonzero((falling[:, 1:] == falling[:, :-1]).any(axis=1)):  # by two keys it takes several times as long
        order[tied] = np.lexsort((rows[tied], -similarity[tied]))
    order = order[:, :k]
    pictures = _pictures(results)
    chosen = None if pictures is None else pictures[queries, order]
    return pad(Neighbors(falling[:, :k], rows[queries, order], pictures=chosen), k)


def head(result: Neighbors, k: int) -> Neighbors:
    """The first k columns of a result."""
    pictures = None if result.pictures is None else result.pictures[:, :k]
    return Neighbors(result.similarity[:, :k], result.rows[:, :k], pictures=pictures)


def _pictures(results: list[Neighbors]) -> np.ndarray | None:
    """The matched pictures of all results side by side; None where none of them says which."""
    if all(f.pictures is None for f in results):
        return None
    return np.concatenate([np.zeros(f.rows.shape, np.int16) if f.pictures is None else f.pictures for f in results], axis=1)


def _is_sorted(result: Neighbors) -> bool:
    """Whether there is nothing left to sort: no equal similarities, and a row in every place."""
    falling = result.similarity[:, 1:] < result.similarity[:, :-1]
    return bool(falling.all()) and bool((result.rows >= 0).all())


def pad(result: Neighbors, k: int) -> Neighbors:
    """Pads a result to at least k columns with (-inf, -1)."""
    nq, there = result.rows.shape
    if there >= k:
        return result
    wide = empty(nq, k, result.pictures is not None)  # np.pad takes ten times as long
    put(wide, np.s_[:, :there], result)
    return wide


def put(target: Neighbors, where: Any, source: Neighbors) -> None:
    """Overwrites a part of `target`, such as some of its queries, by `source`. Both say which pictures matched, or neither."""
    target.similarity[where], target.rows[where] = source.similarity, source.rows
    if target.pictures is not None:
        target.pictures[where] = source.pictures


def stack(results: list[Neighbors], k: int = 0) -> Neighbors:
    """Stacks results of different queries row by row, padded to the widest and to at least k columns."""
    if len(results) == 1:
        return pad(results[0], k)
    columns = max([k, *(f.rows.shape[1] for f in results)])
    wide = [pad(f, columns) for f in results]
    return (
        Neighbors(np.concatenate([f.similarity for f in wide]), np.concatenate([f.rows for f in wide])) if wide else empty(0, k)
    )


def gather(partitions: list[Partition], nq: int, k: int) -> Neighbors:
    """The best k over all partitions: the same as fetching k from each, for little more than the work of fetching k once."""
    return merge(over_fetch(partitions, nq, k)[0], k)


def over_fetch(partitions: list[Partition], nq: int, k: int) -> tuple[list[Neighbors], np.ndarray]:
    """Results by partition that together hold the best k, and the similarity of the k-th of these, (nq,).

    Fetches from each partition its share of k and a margin. A partition all of whose results are among the best k may hold more
    of them and is searched again for k; the unseen rows of the others are no better than their last result, which is not among them.
    """
    all_queries = np.arange(nq)
    if len(partitions) == 1:
        only = partitions[0].search(all_queries, k)
        return [only], np.where(only.rows[:, -1] < 0, np.float32(-np.inf), only.similarity[:, -1])
    quotas = [_quota(s.share, k) for s in partitions]
    results = [s.search(all_queries, n) for s, n in zip(partitions, quotas, strict=True)]
    worst = _kth_similarity(results, k)
    again = False
    for number, partition in enumerate(partitions):
        if quotas[number] >= k:
            continue
        last, there = results[number].similarity[:, -1], results[number].rows[:, -1] >= 0
        unproven = np.flatnonzero(there & (last >= worst))
        if len(unproven):
            again = True
            more = partition.search(unproven, k)
            results[number] = _replace_queries(results[number], unproven, more, k)
    return results, _kth_similarity(results, k) if again else worst


def _kth_similarity(results: list[Neighbors], k: int) -> np.ndarray:
    """Similarity of the k-th best row of each query, (nq,); -inf where there are fewer."""
    similarity = np.concatenate([np.where(f.rows < 0, np.float32(-np.inf), f.similarity) for f in results], axis=1)
    beyond = similarity.shape[1] - k
    if beyond < 0:
        return np.full(len(similarity), -np.inf, np.float32)
    return np.partition(similarity, beyond, axis=1)[:, beyond]


def empty(nq: int, k: int, pictures: bool = False) -> Neighbors:
    """A result without rows: every similarity -inf, every row -1; with `pictures`, one that says which picture matched."""
    matched = np.zeros((nq, k), np.int16) if pictures else None
    return Neighbors(np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64), pictures=matched)


def _quota(share: float, k: int) -> int:
    expected = share * k
    return min(k, int(np.ceil(expected + OVER_FETCH_SIGMAS * expected**0.5)) + OVER_FETCH_MIN)


def _replace_queries(result: Neighbors, which: np.ndarray, better: Neighbors, k: int) -> Neighbors:
    """`result` padded to k columns, with the queries `which` replaced by `better`."""
    wide = pad(result, k)
    put(wide, which, better)
    return wide
