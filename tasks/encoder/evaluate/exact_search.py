"""Exact search for evaluation: ranks, precision and the top ten of every query, block by block in bounded memory."""

from dataclasses import dataclass

import numpy as np

from tasks.encoder.evaluate.retrieval_metrics import average_precision, ranks

BEST = 10
MAX_TITLES = 2000
BLOCK_VALUES = 1 << 25
"""Similarities that are held at a time (128 MB of float32)."""


@dataclass(frozen=True)
class PhotoResults:
    """Per query: the `ranks` (nq,) int64 from 1 of its (best) right product, the average `precision` (nq,), the right product
    `products` (nq,), the rows that came back `best` (nq, k) and their `similarity` (nq, k)."""

    ranks: np.ndarray
    precision: np.ndarray
    products: np.ndarray
    best: np.ndarray
    similarity: np.ndarray


def search_photos(
    xq: np.ndarray, xb: np.ndarray, shown: np.ndarray, products: np.ndarray, good: np.ndarray, pictures: np.ndarray | None = None,
    views: np.ndarray | None = None,
) -> PhotoResults:  # fmt: skip
    """Photos `xq` (nq, d) of `products` (nq,) against documents `xb` (nb, d); queries not `good`, documents not `shown` excluded.

    A query among `views` (nq,) bool is not searched among other products with its product's picture, which nothing tells apart:
    `pictures` (nb,) are equal for these.
    """
    made = np.zeros(len(xq), bool) if views is None else views
    xq, products, made = xq[good], products[good], made[good]
    parts = []
    for rows in _blocks(len(xq), len(xb)):
        similarity = _similarity(xq[rows], xb, shown)
        if pictures is not None:
            for query in np.flatnonzero(made[rows]):
                own = products[rows][query]
                others = pictures == pictures[own]
                others[own] = False
                similarity[query, others] = -np.inf
        rank = ranks(similarity, products[rows])
        parts.append(PhotoResults(rank, 1.0 / rank, products[rows], *_best(similarity)))
    return _joined(parts)


def title_queries(titles: tuple[str, ...], shown: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different titles of products that are `shown` (nb,), at most MAX_TITLES of them spread evenly; and for each product
    the number (nb,) int64 of its title among them, -1 when it is not asked or the product not shown."""
    names, title = np.unique(np.asarray(titles, dtype=object), return_inverse=True)
    asked = np.unique(title[shown])
    asked = asked[[bool(names[n]) for n in asked]] if len(asked) else asked
    asked = asked[np.unique(np.linspace(0, len(asked) - 1, MAX_TITLES).round().astype(int))] if len(asked) > MAX_TITLES else asked
    number = np.full(len(names), -1, np.int64)
    number[asked] = np.arange(len(asked))
    return [str(names[n]) for n in asked], np.where(shown, number[title], -1)


def search_titles(xq: np.ndarray, xb: np.ndarray, shown: np.ndarray, number: np.ndarray) -> PhotoResults:
    """Title vectors `xq` (nq, d) against documents `xb` (nb, d); every product with `number[product]` == query is relevant."""
    parts = []
    for rows in _blocks(len(xq), len(xb)):
        similarity = _similarity(xq[rows], xb, shown)
        rank, precision, right = [], [], []
        for query, row in enumerate(similarity, rows.start):
            relevant = number == query
            own = int(np.flatnonzero(relevant)[np.argmax(row[relevant])])
            rank.append(int((row[~relevant] >= row[own]).sum()) + 1)
            precision.append(average_precision(row, relevant))
            right.append(own)
        parts.append(PhotoResults(np.asarray(rank), np.asarray(precision), np.asarray(right), *_best(similarity)))
    return _joined(parts)


def _blocks(nq: int, nb: int) -> list[slice]:
    size = max(1, BLOCK_VALUES // max(nb, 1))
    return [slice(start, start + size) for start in range(0, max(nq, 1), size)]


def _similarity(xq: np.ndarray, xb: np.ndarray, shown: np.ndarray) -> np.ndarray:
    similarity = xq @ xb.T
    similarity[:, ~shown] = -np.inf
    return similarity


def _best(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : min(BEST, similarity.shape[1])]
    return best, np.take_along_axis(similarity, best, axis=1)


def _joined(parts: list[PhotoResults]) -> PhotoResults:
    names = ("ranks", "precision", "products", "best", "similarity")
    return PhotoResults(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))
