"""Train/val/test splits by hash of the name alone, independent of run, catalogue and recipe.

A photo or product that one run holds out is held out by every run, before and after it, however the catalogue grows. So
nothing that a version is judged on was ever trained on, by it or by a version that it started from.
"""

import hashlib

VAL_SHARE = 0.1
"""Of the photos whose split the catalogue does not say."""
UNSEEN_SHARE = 0.05
"""Of the products: none of their pictures is trained on, so that recall on products never seen can be measured."""


def photo_split(uri: str) -> str:
    """The split of a photo without one: "val" for a tenth of them, else "train"."""
    return "val" if hash_fraction(f"photo:{uri}") < VAL_SHARE else "train"


def is_unseen(product_id: str) -> bool:
    """Whether no encoder may be trained on this product."""
    return hash_fraction(f"product:{product_id}") < UNSEEN_SHARE


def hash_fraction(name: str) -> float:
    """A name hashed to [0, 1), uniformly and the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
