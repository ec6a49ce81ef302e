"""Several pictures a product: an engine's positions are pictures, and a search is answered with products, each by its best picture.

Why the first k distinct products of a ranked list of pictures are the k best: a product's first picture in the list is its best one,
and any product that is not in the list has only pictures below the list's last. So a list with k distinct products is long enough,
and one of k times the most pictures that a product has always is.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from serving.contract.files import ContractError
from serving.index.merge import Neighbors, empty


@dataclass(eq=False)
class Pictures:
    """The pictures of an opened segment: of each position the row of its product, (n,) int32, and its place among that product's pictures,
    (n,) int16. Six bytes a picture."""

    rows: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, keys: np.ndarray, name: str) -> "Pictures":
        """The pictures in `table` (serving/contract/segments.py, PICTURES) of the products `keys` (m,). `name` is said in errors.

        Raises ContractError where a picture's product is not among the keys, or a product has no picture.
        """
        product = table["product"].to_numpy()
        order = None if (keys[1:] > keys[:-1]).all() else np.argsort(keys)
        place = np.searchsorted(keys, product, sorter=order).clip(max=max(len(keys) - 1, 0))
        rows = (place if order is None else order[place]).astype(np.int32)
        if len(product) and (not len(keys) or (lost := keys[rows] != product).any()):
            raise ContractError(
                f"{name}: it has a picture of key {product[int(np.argmax(lost)) if len(keys) else 0]}, which has no row"
            )
        if (bare := np.bincount(rows, minlength=len(keys)) == 0).any():
            raise ContractError(f"{name}: it has no picture of key {keys[int(np.argmax(bare))]}")
        return cls(rows, table["position"].to_numpy())

    @property
    def nbytes(self) -> int:
        """Memory of both arrays."""
        return self.rows.nbytes + self.places.nbytes

    @cached_property
    def most(self) -> int:
        """The most pictures that one product has."""
        return int(np.bincount(self.rows).max(initial=0))

    @cached_property
    def depicted(self) -> np.ndarray | None:
        """Which rows (m,) bool have a picture: those with a title alone have none. None where every position is a picture's."""
        shown = self.places >= 0
        return None if shown.all() else np.bincount(self.rows, shown) > 0

    @cached_property
    def in_order(self) -> bool:
        """Whether a product's pictures lie together, as in every index but a regrouped graph."""
        return bool((self.rows[1:] >= self.rows[:-1]).all())

    def of_row(self, row: int) -> np.ndarray:
        """Positions (n,) of a product's pictures, the main one first."""
        begin, end = np.searchsorted(self.rows, [row, row + 1]) if self.in_order else (0, len(self.rows))
        mine = begin + np.flatnonzero(self.rows[begin:end] == row)
        places = self.places[mine].astype(np.uint16)  # -1, a title, comes last
        return mine[np.argsort(places, kind="stable")]


def best_pictures(found: Neighbors, k: int) -> Neighbors:
    """The k best products of a ranked list of pictures: of each the best picture; equal similarities by row, then by picture.

    `found` has `pictures`, and in `rows` each picture's product, best first, -1 at the end.
    """
    assert found.pictures is not None
    result = empty(len(found.rows), k, pictures=True)
    assert result.pictures is not None
    for query, (similarity, rows, pictures) in enumerate(zip(found.similarity, found.rows, found.pictures, strict=True)):
        there = int(np.count_nonzero(rows >= 0))
        similarity, rows, pictures = similarity[:there], rows[:there], pictures[:there]
        if (similarity[1:] == similarity[:-1]).any():
            order = np.lexsort((pictures, rows, -similarity))
            similarity, rows, pictures = similarity[order], rows[order], pictures[order]
        first = np.sort(np.unique(rows, return_index=True)[1])[:k]
        count = len(first)
        result.similarity[query, :count] = similarity[first]
        result.rows[query, :count], result.pictures[query, :count] = rows[first], pictures[first]
    return result
