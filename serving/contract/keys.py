"""Product keys: the 63-bit integers that FAISS, shards and tombstones use in place of product ids."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

MAX_KEY = 2**63 - 1


def product_key(product_id: str) -> int:
    """The stable key of a product id: the first 63 bits of its BLAKE2b-64 digest, in [0, 2**63).

    With 10M products the chance of any collision is about 5e-6 (birthday bound n**2 / 2**64); the snapshot checks for one.
    """
    return int.from_bytes(blake2b(product_id.encode(), digest_size=8).digest(), "big") & MAX_KEY


def product_keys(product_ids: Iterable[str]) -> np.ndarray:
    """Keys (n,) int64 of many product ids, in their order."""
    return np.fromiter((product_key(p) for p in product_ids), dtype=np.int64)


def shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    """The shard (n,) of each key: `key mod shards`."""
    return keys % shards
