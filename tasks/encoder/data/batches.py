"""Class-balanced batches: several pictures of each product, and step t is deterministic."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tasks.encoder.config import EncoderConfig, Recipe
from tasks.encoder.data.decoders import Decoders
from tasks.encoder.data.photos import Photos, TrainingSet, joined
from tasks.encoder.data.pixels import Decoding, Pixels, cached_pixels, content_digests, survey
from tasks.encoder.train.distributed import ProcessGroup
from tasks.errors import TrainingError

OWN = -1
"""The row that stands for a product's own picture among the rows of its photos."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """This process's part of a step's pictures.

    `products` (n,) int64 numbers the product of each picture of the whole step, on every process alike; `pixels`
    (m, s, s, 3) uint8 are those of the rows `first` to `first + m`. With one process that is all of them.
    """

    pixels: np.ndarray
    products: np.ndarray
    first: int = 0


class Batches(Protocol):
    """Batches by step number. `count` is the maximum number of products in one."""

    count: int

    def __call__(self, number: int) -> Batch: ...


class BatchPlan:
    """Samples `recipe.products` products and their catalogue picture and photos in turn, determined by (seed, step).

    Products follow one another in a shuffled order, so that each comes equally often whatever its number of photos; so do
    the photos of one product. A product without photos shows its picture several times, each augmented otherwise.
    """

    def __init__(self, pictures: np.ndarray, photos: np.ndarray, photo_products: np.ndarray, recipe: Recipe, seed: int) -> None:
        self.pictures, self.seed, self.per_product = pictures, seed, recipe.pictures
        rows = np.flatnonzero(photos)
        self.rows = rows[np.argsort(photo_products[rows], kind="stable")]
        self.owners = photo_products[self.rows]
        shown = pictures.copy()
        shown[self.owners] = True
        self.products = np.flatnonzero(shown)
        if len(self.products) < 2:
            raise TrainingError(
                f"a contrastive loss needs at least two products with readable pictures; the snapshot has {len(self.products)}"
            )
        self.count = min(recipe.products, len(self.products))
        self.orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Products (m,) int64 of a step and their rows (m, pictures) int64: a photo's row, or OWN."""
        products = self._chosen(step)
        return products, np.stack([self._rows(step, int(p)) for p in products])

    def _rows(self, step: int, product: int) -> np.ndarray:
        first, last = np.searchsorted(self.owners, [product, product + 1])
        if first == last:
            return np.full(self.per_product, OWN)
        photos, shown = self.rows[first:last], int(self.pictures[product])
        wanted = self.per_product - shown
        rng = np.random.default_rng([self.seed, step, product])
        order = np.concatenate([rng.permutation(photos) for _ in range(-(-wanted // len(photos)))]) if wanted else photos[:0]
        return np.concatenate([np.full(shown, OWN), np.sort(order[:wanted])])

    def _chosen(self, step: int) -> np.ndarray:
        """The products of a step: consecutive stretches of one shuffled order after another."""
        start, n = step * self.count, len(self.products)
        first = start // n
        both = np.concatenate([self._order(first), self._order(first + 1)])
        return np.unique(both[start - first * n :][: self.count])

    def _order(self, round_: int) -> np.ndarray:
        if round_ not in self.orders:
            self.orders = {r: o for r, o in self.orders.items() if r == round_ - 1}
            self.orders[round_] = np.random.default_rng([self.seed, round_]).permutation(self.products)
        return self.orders[round_]


class BalancedBatches:
    """Batches from decoded pictures in memory; each of the `replicas` gets its part."""

    def __init__(self, pictures: Pixels, photos: Pixels, plan: BatchPlan, replicas: ProcessGroup) -> None:
        self.pictures, self.photos, self.plan = pictures.array, photos.array, plan
        self.replicas, self.count = replicas, plan.count

    def __call__(self, number: int) -> Batch:
        products, rows = self.plan(number)
        mine = self.replicas.local_slice(len(products))
        found = [
            self.pictures[product] if row == OWN else self.photos[row]
            for product, own in zip(products[mine], rows[mine], strict=True)
            for row in own
        ]
        return Batch(np.stack(found), np.repeat(products, rows.shape[1]), mine.start * rows.shape[1])


class StreamedBatches:
    """The same batches decoded by worker processes a few steps ahead, when pictures do not fit in memory."""

    def __init__(
        self, training: TrainingSet, photos: Photos, decoders: Decoders, plan: BatchPlan, replicas: ProcessGroup
    ) -> None:
        self.decoders, self.plan, self.training = decoders, plan, training
        self.photos = photos.uris
        self.replicas, self.count = replicas, plan.count

    def __call__(self, number: int) -> Batch:
        products, rows = self.plan(number)
        mine = self.replicas.local_slice(len(products))
        return Batch(self.decoders(number, self._uris), np.repeat(products, rows.shape[1]), mine.start * rows.shape[1])

    def _uris(self, number: int) -> list[str]:
        products, rows = self.plan(number)
        mine = self.replicas.local_slice(len(products))
        images = self.training.image_uris
        return [
            images[product] if row == OWN else self.photos[row]
            for product, own in zip(products[mine], rows[mine], strict=True)
            for row in own
        ]


@contextmanager
def training_batches(
    training: TrainingSet, config: EncoderConfig, recipe: Recipe, work: Path, decoding: Decoding, replicas: ProcessGroup,
    kept_out: np.ndarray | None = None,
) -> Iterator[Batches]:  # fmt: skip
    """Batches of a snapshot's train split and, where the config wants them, of further pictures of its products.

    Without unseen products and without duplicates of held-out photos.

    `kept_out` (n,) bool: photos of the train split that are not trained on either.

    The pictures are decoded into `work` first, once; where they are too many for that, each is read once to see whether it
    can be, and then decoded as it is used. Both ways give the same batches.
    """
    spec = config.preprocess.model_copy(update={"size": config.cache_size})
    train, folder = training.split("train"), work / "pixels"
    labelled = len(train)
    if config.further_pictures:
        train = joined(train, training.further)
    kept = decoding.fits_cache(len(train) + len(training.image_uris), spec)
    look = cached_pixels if kept else survey
    with replicas.main_process_first():
        pictures = look(training.image_uris, training.root, spec, folder, "product", decoding.max_unreadable)
        photos = look(train.uris, training.root, spec, folder, "train", decoding.max_unreadable)
    held_out = set(content_digests(training.never_trained().uris, training.root)) - {b""}
    shown = pictures.usable & ~training.unseen & ~_known(pictures.digests, held_out)
    usable = photos.usable & ~_known(photos.digests, held_out)
    copies = int(photos.usable.sum() - usable.sum())
    if copies:
        log.warning("%d training photos are copies of held-out photos and are left out", copies)
    _refuse_empty(training, train.products[usable], shown, decoding.max_untrainable)
    if kept_out is not None:  # nor copies of them
        out = np.concatenate([kept_out, np.zeros(len(train) - labelled, bool)])
        usable &= ~out & ~_known(photos.digests, {d.tobytes() for d in photos.digests[out & photos.usable]})
    plan = BatchPlan(shown, usable, train.products, recipe, config.seed)
    if kept:
        assert isinstance(pictures, Pixels)
        assert isinstance(photos, Pixels)
        yield BalancedBatches(pictures, photos, plan, replicas)
        return
    with Decoders(training.root, spec, decoding.workers) as decoders:
        yield StreamedBatches(training, train, decoders, plan, replicas)


def _known(digests: np.ndarray, held_out: set[bytes]) -> np.ndarray:
    return np.asarray([d.tobytes() in held_out for d in digests], bool)


def _refuse_empty(training: TrainingSet, photographed: np.ndarray, shown: np.ndarray, most: float) -> None:
    """A labelled product of which nothing can be read is left out where it is one of many, else an error."""
    labelled = np.unique(training.split("train").products)
    seen = np.union1d(np.flatnonzero(shown), photographed)
    empty = np.setdiff1d(labelled, seen)
    if not len(empty):
        return
    named = ", ".join(training.product_ids[p] for p in empty[:5])
    if len(empty) > most * len(labelled):
        raise TrainingError(
            f"{len(empty)} of {len(labelled)} labelled products have no picture that can be read and trained on, "
            f"allowed {most * 100:.3g} %: VITRINE_MAX_UNTRAINABLE (first: {named}); "
            "mend their pictures, or take their rows out of the photos"
        )
    log.warning("%d labelled products have no readable picture and are left out: %s", len(empty), named)
