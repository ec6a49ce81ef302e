"""The training set of a snapshot: products with texts, and labelled photos in leak-free splits."""

from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.photo_box import split_box
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.snapshot import photo_table, product_table, read_snapshot
from tasks.catalog.splits import is_unseen
from tasks.errors import TrainingError
from tasks.queries.view_store import view_table


@dataclass(frozen=True)
class Photos:
    """Pictures with their products as parallel lists. `products` are row numbers into the product list."""

    uris: tuple[str, ...]
    products: np.ndarray

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True)
class TrainingSet:
    """Training and evaluation data. `by_split` holds the photos of train, val, test and unseen, none in two; and the views.

    Views stand in for photos as queries (tasks/queries); none is trained on, but the pictures that they are made of may be. `further`
    are further pictures of products that are trained on. `unseen[i]` says that product i is never trained on; the photos of the split
    `unseen` are theirs (those not in val or test).
    """

    product_ids: tuple[str, ...]
    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    categories: tuple[str, ...]
    image_uris: tuple[str, ...]
    unseen: np.ndarray
    by_split: dict[str, Photos]
    root: str
    content_sha256: str
    further: Photos = field(default_factory=lambda: Photos((), np.zeros(0, np.int64)))
    snapshot_id: str = ""
    orphans: str = ""
    """What the snapshot left out (Snapshot.orphans), "" for nothing."""

    def split(self, name: str) -> Photos:
        return self.by_split[name]

    def held_out(self) -> Photos:
        """The queries that recall is measured on: the photos of val, or of test without a val split, and the views."""
        photos, views = self.by_split["val"] if len(self.by_split["val"]) else self.by_split["test"], self.by_split["views"]
        return joined(photos, views) if len(views) else photos

    def unseen_queries(self) -> Photos:
        """The queries of products that are never trained on: their photos, and their views."""
        views = self.by_split["views"]
        rows = np.flatnonzero(self.unseen[views.products])
        return joined(self.by_split["unseen"], Photos(tuple(views.uris[i] for i in rows), views.products[rows]))

    def never_trained(self) -> Photos:
        """All photos excluded from training: val, test, and those of unseen products."""
        return joined(*(self.by_split[name] for name in ("val", "test", "unseen")))


def joined(*parts: Photos) -> Photos:
    """All of them, one after the other."""
    return Photos(tuple(u for p in parts for u in p.uris), np.concatenate([p.products for p in parts]))


def read_training_set(snapshot_uri: str, photo_days: int = 0) -> TrainingSet:
    """Products and photos of a snapshot; with `photo_days`, only train photos of the last so many days.

    Days are counted back from the newest photo of the snapshot, so the same snapshot gives the same set on any day. Held-out
    photos are never left out. Raises TrainingError when one photo is in two splits.
    """
    snapshot = read_snapshot(snapshot_uri)
    products = product_table(snapshot_uri, ["product_id", "title", "description", "category", "image_uri", IMAGES])
    products = products.filter(pc.not_equal(products["image_uri"], ""))  # nothing of theirs can be seen
    ids = products["product_id"].to_pylist()
    unseen = np.asarray([is_unseen(product_id) for product_id in ids])
    return TrainingSet(
        product_ids=tuple(ids),
        titles=tuple(products["title"].to_pylist()),
        descriptions=tuple(products["description"].to_pylist()),
        categories=tuple((c or [""])[0] for c in products["category"].to_pylist()),
        image_uris=tuple(products["image_uri"].to_pylist()),
        unseen=unseen,
        by_split=_splits(_recent(photo_table(snapshot_uri), photo_days, snapshot.id), ids, unseen)
        | {"views": _views(snapshot_uri, ids)},
        root=snapshot.image_root,
        content_sha256=snapshot.content_sha256,
        further=_further(products, unseen),
        snapshot_id=snapshot.id,
        orphans=snapshot.orphans,
    )


def _further(products: pa.Table, unseen: np.ndarray) -> Photos:
    """The further pictures of products that are not `unseen`."""
    lists = products[IMAGES].to_pylist() if IMAGES in products.column_names else []
    shown = [(uri, row) for row, uris in enumerate(lists) if not unseen[row] for uri in uris or ()]
    return Photos(tuple(uri for uri, _ in shown), np.asarray([row for _, row in shown], np.int64))


def _splits(photos: pa.Table, ids: list[str], unseen: np.ndarray) -> dict[str, Photos]:
    row = {product_id: i for i, product_id in enumerate(ids)}
    seen: dict[str, str] = {}
    parts: dict[str, tuple[list[str], list[int]]] = {name: ([], []) for name in ("train", "val", "test", "unseen")}
    for uri, product_id, split in zip(*(photos[c].to_pylist() for c in ("photo_uri", "product_id", "split")), strict=True):
        photo, _ = split_box(uri)
        if seen.setdefault(photo, split) != split:
            raise TrainingError(f"photo {photo!r} is in the splits {seen[photo]} and {split}; a photo may be in one only")
        where = "unseen" if split == "train" and unseen[row[product_id]] else split
        parts[where][0].append(uri)
        parts[where][1].append(row[product_id])
    return {k: Photos(tuple(uris), np.asarray(rows, np.int64)) for k, (uris, rows) in parts.items()}


def _views(snapshot_uri: str, ids: list[str]) -> Photos:
    views = view_table(snapshot_uri)
    row = {product_id: i for i, product_id in enumerate(ids)} if len(views) else {}
    rows = [row[product_id] for product_id in views["product_id"].to_pylist()]
    return Photos(tuple(views["photo_uri"].to_pylist()), np.asarray(rows, np.int64))


def _recent(photos: pa.Table, days: int, snapshot_id: str) -> pa.Table:
    """Photos without train photos older than `days` days; all when `days` is 0."""
    if not days or not len(photos):
        return photos
    taken = photos["taken_at"]
    if taken.null_count == len(taken):
        raise TrainingError(
            f"snapshot {snapshot_id}: no photo has a date, so a window of {days} days means nothing; "
            "give photos.csv a column taken_at, or leave the data window empty"
        )
    first = pc.subtract(pc.max(taken), pa.scalar(timedelta(days=days)))
    kept = pc.or_(pc.not_equal(photos["split"], "train"), pc.fill_null(pc.greater_equal(taken, first), False))
    return photos.filter(kept)
