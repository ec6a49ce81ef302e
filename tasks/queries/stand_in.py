"""Makes the views that stand in for shoppers' photos, for products without a held-out photo, while there are few photos."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.preprocess import ImageRejected
from serving.search.image_fetch import Fetcher
from tasks import storage
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.snapshot import Snapshot, photo_table, product_batches
from tasks.embed.images import NOWHERE, read_image
from tasks.progress import Progress
from tasks.queries.view import make_view
from tasks.queries.view_store import TABLE, renew_view, view_table, view_uri, write_view, write_view_table

log = logging.getLogger(__name__)

MOST = 2000
"""Queries of a snapshot at most, photos and views together: as many as the gates ask."""
SPARE = 2
"""So many times as many pictures are looked at, at most, for views of those that can be used."""
BLOCK = 64


def held_out_photos(snapshot_uri: str) -> pa.Table:
    """The labelled photos that recall is measured on: the split val, or test where there is no val."""
    photos = photo_table(snapshot_uri)
    val = photos.filter(pc.equal(photos["split"], "val"))
    return val if len(val) else photos.filter(pc.equal(photos["split"], "test"))


def make_stand_ins(snapshot: Snapshot, store_uri: str, enough: int, web: Fetcher = NOWHERE) -> pa.Table:
    """The views of a snapshot (view_store.SCHEMA), made where they are not kept yet; none with `enough` held-out photos.

    One view each of products without a held-out photo, up to MOST queries in all, spread over the categories; which products
    follows from their keys, so that tomorrow's snapshot asks nearly the same. It is made of the product's first further picture that
    can be used, else of its main one: a shopper's photo shows the thing from another side, too. A main picture of several products
    is asked once; a product whose pictures cannot be used gets no view. Run again, it returns what it settled the first time.
    """
    if storage.exists(storage.join(snapshot.uri, TABLE)):
        return view_table(snapshot.uri)
    photos = held_out_photos(snapshot.uri)
    if len(photos) >= enough:
        return view_table(snapshot.uri)
    wanted = max(0, MOST - len(photos))
    candidates = _candidates(snapshot, set(photos["product_id"].to_pylist()), SPARE * wanted)
    rows: list[dict[str, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("make views", min(wanted, len(candidates)), "views") as progress:
        for start in range(0, len(candidates), BLOCK):
            made = pool.map(partial(_view_of, snapshot, store_uri, web), candidates[start : start + BLOCK])
            rows += [row for row in made if row is not None]
            progress.set(min(len(rows), wanted))
            if len(rows) >= wanted:
                break
    rows = _told_apart(rows)[:wanted]
    write_view_table(snapshot.uri, rows)
    log.warning(
        "%d held-out photos are fewer than the %d that recall is measured on alone (VITRINE_ENOUGH_PHOTOS): views of %d product "
        "pictures stand in for photos of products without one; figures that come of them are called synthetic", len(photos), enough,
        len(rows),
    )  # fmt: skip
    return view_table(snapshot.uri)


def stratified_order(keys: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Rows (n,) int64 so that any head of them has each stratum in about its share, and the first of every stratum leads.

    `keys` (n,) int64 are hashes, whose order is as good as drawn; `strata` (n,) int64 numbers.
    """
    if not len(keys):
        return np.zeros(0, np.int64)
    order = np.lexsort([keys, strata])
    first = np.concatenate([[0], np.flatnonzero(np.diff(strata[order])) + 1])
    sizes = np.diff(np.concatenate([first, [len(order)]]))
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    place = np.where(rank == 0, -1.0, (rank + 0.5) / np.repeat(sizes, sizes))
    return order[np.lexsort([keys[order], place])]


@dataclass(frozen=True)
class Candidate:
    """A product that a view may be made for: its main picture, and the further ones."""

    product_id: str
    image_uri: str
    further: tuple[str, ...] = ()


def _candidates(snapshot: Snapshot, shown: set[str], most: int) -> list[Candidate]:
    """At most `most` products that are not `shown`, in the order in which views are made for them."""
    keys, strata = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    number: dict[str, int] = {}
    with_photo = pa.array(sorted(shown), pa.string())
    columns = ["key", "product_id", "category", *(["image_uri"] if snapshot.titles else [])]
    for batch in product_batches(snapshot.uri, columns):
        rows = batch.filter(pc.invert(pc.is_in(batch["product_id"], with_photo)))
        rows = rows.filter(pc.not_equal(rows["image_uri"], "")) if snapshot.titles else rows
        keys.append(rows["key"].to_numpy())
        names = [(c or [""])[0] for c in rows["category"].to_pylist()]
        strata.append(np.asarray([number.setdefault(name, len(number)) for name in names], np.int64))
    every = np.concatenate(keys)
    chosen = every[stratified_order(every, np.concatenate(strata))[:most]]
    place = {int(key): n for n, key in enumerate(chosen)}
    found = sorted(_rows_of(snapshot, chosen), key=lambda row: place[row["key"]])
    first: dict[str, Candidate] = {}
    for row in found:
        uri = row["image_uri"] or ""
        first.setdefault(uri, Candidate(row["product_id"], uri, tuple(row.get(IMAGES) or ())))
    return list(first.values())


def _told_apart(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows without pictures that lie under several addresses: whose view such a one is cannot be said."""
    times = Counter(row["photo_uri"] for row in rows)
    return [row for row in rows if times[row["photo_uri"]] == 1]


def _rows_of(snapshot: Snapshot, keys: np.ndarray) -> Iterator[dict]:
    for batch in product_batches(snapshot.uri, ["key", "product_id", "image_uri", IMAGES]):
        yield from batch.filter(pa.array(np.isin(batch["key"].to_numpy(), keys))).to_pylist()


def _made(data: bytes) -> bytes | None:
    """The view of a picture; None where it would be the picture, or a decoder fails on it. Raises ImageRejected."""
    try:
        return make_view(data)
    except ImageRejected:
        raise
    except Exception as error:  # a decoder's own fault costs one view, not the snapshot
        log.warning("no view of a picture of %d bytes: %s: %s", len(data), type(error).__name__, error)
        return None


def _view_of(snapshot: Snapshot, store_uri: str, web: Fetcher, product: Candidate) -> dict[str, str] | None:
    """The row of a product's view; None where no picture of it can be used, or whose view would be the picture."""
    for picture in (*product.further, product.image_uri):
        with suppress(ImageRejected):
            data = read_image(picture, snapshot.image_root, web)
            uri = view_uri(store_uri, hashlib.sha256(data).hexdigest())
            if not renew_view(uri):
                jpeg = _made(data)
                if jpeg is None:
                    continue
                write_view(uri, jpeg)
            return {"photo_uri": uri, "product_id": product.product_id, "image_uri": product.image_uri}
    return None
