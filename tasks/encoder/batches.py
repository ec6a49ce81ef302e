"""Class-balanced batches: each holds several pictures of each of its products, and step t is the same whoever asks for it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.encoder.photos import Pixels, TrainingSet, cached_pixels
from tasks.encoder.presets import EncoderConfig, Recipe
from tasks.errors import TrainingError


@dataclass(frozen=True)
class Batch:
    """`pixels` (n, s, s, 3) uint8 and the product number (n,) int64 of each picture."""

    pixels: np.ndarray
    products: np.ndarray


class BalancedBatches:
    """Draws `recipe.products` products, and of each its catalogue picture and photos in turn, by (seed, step) alone.

    Products follow one another in a shuffled order, so that each comes equally often whatever its number of photos; so do
    the photos of one product. A product without photos shows its picture several times, each augmented otherwise.
    """

    def __init__(self, pictures: Pixels, photos: Pixels, photo_products: np.ndarray, recipe: Recipe, seed: int) -> None:
        self.pictures, self.photos, self.seed = pictures, photos, seed
        self.per_product = recipe.pictures
        by_product: dict[int, list[int]] = {}
        for i, product in enumerate(photo_products):
            if photos.usable[i]:
                by_product.setdefault(int(product), []).append(i)
        self.by_product = {p: np.asarray(rows) for p, rows in by_product.items()}
        self.products = np.asarray([p for p in range(len(pictures.usable)) if pictures.usable[p] or p in self.by_product])
        if len(self.products) < 2:
            raise TrainingError(
                f"a contrastive loss needs at least two products with readable pictures; the snapshot has {len(self.products)}"
            )
        self.count = min(recipe.products, len(self.products))

    def __call__(self, step: int) -> Batch:
        products = self._chosen(step)
        pixels, numbers = [], []
        for product in products:
            rng = np.random.default_rng([self.seed, step, int(product)])
            rows = self.by_product.get(int(product), np.empty(0, np.int64))
            shown = int(self.pictures.usable[product])
            if shown:
                pixels.append(self.pictures.array[product])
            if len(rows):
                order = np.concatenate([rng.permutation(rows) for _ in range(-(-(self.per_product - shown) // len(rows)))])
                pixels.extend(self.photos.array[i] for i in np.sort(order[: self.per_product - shown]))
            else:
                pixels.extend(self.pictures.array[product] for _ in range(self.per_product - shown))
            numbers.extend([product] * self.per_product)
        return Batch(np.stack(pixels), np.asarray(numbers, np.int64))

    def _chosen(self, step: int) -> np.ndarray:
        """The products of a step: consecutive stretches of one shuffled order after another."""
        start, n = step * self.count, len(self.products)
        first = start // n
        both = np.concatenate(
            [np.random.default_rng([self.seed, round_]).permutation(self.products) for round_ in (first, first + 1)]
        )
        chosen = both[start - first * n :][: self.count]
        return np.unique(chosen)


def training_batches(training: TrainingSet, config: EncoderConfig, recipe: Recipe, work: Path) -> BalancedBatches:
    """The batches of a snapshot's train split; decodes its pictures into `work` first, once."""
    spec = config.preprocess.model_copy(update={"size": config.cache_size})
    train = training.split("train")
    pictures = cached_pixels(training.image_uris, training.root, spec, work / "pixels", "product")
    photos = cached_pixels(train.uris, training.root, spec, work / "pixels", "train")
    return BalancedBatches(pictures, photos, train.products, recipe, config.seed)
