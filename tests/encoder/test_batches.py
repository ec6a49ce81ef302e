"""Class-balanced batches: several pictures of each product, every product equally often, the same at every call."""

from collections import Counter

import numpy as np
import pytest

from tasks.encoder.batches import BalancedBatches
from tasks.encoder.photos import Pixels
from tasks.encoder.presets import Recipe
from tasks.errors import TrainingError


def pixels(n: int, first: int) -> Pixels:
    """Pictures whose every pixel is their own number."""
    array = np.arange(first, first + n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Pixels(array, np.ones(n, bool))


def batches(photo_products: list[int], products: int = 10, **recipe: int) -> BalancedBatches:
    how = Recipe(**({"steps": 1, "products": 4, "pictures": 3} | recipe))
    return BalancedBatches(pixels(products, 0), pixels(len(photo_products), 100), np.asarray(photo_products), how, seed=1)


def test_a_batch_holds_the_picture_and_photos_of_each_product() -> None:
    photo_products = [p for p in range(10) for _ in range(5)]
    batch = batches(photo_products)(0)
    assert batch.pixels.shape == (12, 2, 2, 3)
    assert sorted(Counter(batch.products.tolist()).values()) == [3, 3, 3, 3]
    for value, product in zip(batch.pixels[:, 0, 0, 0], batch.products, strict=True):
        assert (value if value < 100 else photo_products[value - 100]) == product
    assert sum(batch.pixels[:, 0, 0, 0] < 100) == 4


def test_every_product_comes_equally_often_however_many_photos_it_has() -> None:
    draw = batches([0] * 50 + [1])
    seen = Counter(int(p) for step in range(25) for p in set(draw(step).products.tolist()))
    assert set(seen) == set(range(10))
    assert max(seen.values()) - min(seen.values()) <= 2


def test_a_product_without_photos_shows_its_picture_and_one_with_few_repeats_them() -> None:
    draw = batches([0, 0], pictures=6)
    found = [(p, v) for step in range(5) for p, v in zip(draw(step).products, draw(step).pixels[:, 0, 0, 0], strict=True)]
    assert {int(v) for p, v in found if p == 3} == {3}
    assert {int(v) for p, v in found if p == 0} == {0, 100, 101}


def test_a_step_is_the_same_at_every_call_and_differs_from_the_next() -> None:
    draw = batches([p for p in range(10) for _ in range(5)])
    assert np.array_equal(draw(7).pixels, draw(7).pixels)
    assert not np.array_equal(draw(7).products, draw(8).products)


def test_unreadable_photos_are_never_drawn() -> None:
    photos = Pixels(pixels(4, 100).array, np.asarray([True, False, False, True]))
    draw = BalancedBatches(pixels(2, 0), photos, np.asarray([0, 0, 1, 1]), Recipe(steps=1, products=2, pictures=4), seed=0)
    values = {int(v) for step in range(10) for v in draw(step).pixels[:, 0, 0, 0]}
    assert values == {0, 1, 100, 103}


def test_a_single_product_cannot_be_trained_on() -> None:
    with pytest.raises(TrainingError, match="at least two products"):
        batches([0, 0, 0], products=1)
