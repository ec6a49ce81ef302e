"""What is known of every row of an index version, column by column, so that ranking 500 rows is a few array operations."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Features:
    """Columns over all rows of a version; a row is addressed by its handle 0..n-1.

    `in_stock` bool, `popularity` float32, `price` float64 (NaN: unknown), `brand`, `leaf` and `top` int32 codes into `brands`,
    `leaves` and `tops` (code 0 is "none"); everything else through `take`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.rows = len(table)
        self.key = _numpy(self.table["key"])
        self.by_key = np.argsort(self.key, kind="stable")
        self.in_stock = _numpy(pc.fill_null(self.table["in_stock"], True))
        self.popularity = _numpy(pc.fill_null(self.table["popularity"], 0.0)).astype(np.float32)
        self.price = _numpy(pc.fill_null(self.table["price"].cast(pa.float64()), float("nan")))
        self.brand, self.brands = _codes(self.table["brand"])
        self.leaf, self.leaves = _codes(pc.binary_join(self.table["category"], " > "))
        first = pc.list_slice(self.table["category"], 0, 1)
        self.top, self.tops = _codes(pc.binary_join(first, ""))

    def rows_of(self, key: int) -> np.ndarray:
        """Handles of every row with this key, oldest segment first; a key may be in a base and in later deltas."""
        low = np.searchsorted(self.key, key, sorter=self.by_key)
        high = np.searchsorted(self.key, key, side="right", sorter=self.by_key)
        return np.sort(self.by_key[low:high])

    def take(self, handles: np.ndarray, columns: list[str]) -> list[dict]:
        """The named columns of some rows, as one dict a row."""
        return self.table.select(columns).take(pa.array(handles)).to_pylist()


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes (n,) int32 and their names; empty and missing values are code 0, named ""."""
    filled = pc.fill_null(column, "")
    encoded = pa.concat_arrays([pa.array([""]), *filled.chunks]).dictionary_encode()
    return encoded.indices.to_numpy()[1:].astype(np.int32), encoded.dictionary.to_pylist()
