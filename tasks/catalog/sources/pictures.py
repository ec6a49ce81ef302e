"""A catalogue's table of pictures (product_images, images.csv), joined to its products in bounded memory."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.columns import convert
from tasks.catalog.product_pictures import PICTURE_ROWS, one_array
from tasks.catalog.sources.sorting import product_ids, sorted_batches
from tasks.catalog.sources.source import BATCH_ROWS
from tasks.catalog.values import TYPES
from tasks.errors import CatalogError

log = logging.getLogger(__name__)

NO_PICTURES = (
    "swatch", "video", "audio", "3d", "model", "document", "manual", "pdf", "size_chart", "logo", "icon", "placeholder",
)  # fmt: skip
"""Kinds, in lower case, of rows that are left out: they do not show the product. Rows of any other kind, or of none, are pictures."""
SCHEMA = pa.schema([("product_id", pa.string()), ("image", pa.string()), ("position", pa.float64())])
ORDER = [("product_id", "ascending"), ("position", "ascending"), ("image", "ascending")]


def read_rows(batch: pa.RecordBatch, where: str) -> pa.Table:
    """The pictures among rows of a table of pictures (SCHEMA): those of NO_PICTURES, and those without product or picture, left out.

    Raises CatalogError where a column is missing.
    """
    names = batch.schema.names
    given = {"product_id": "product_id", "image": "image" if "image" in names or "image_uri" not in names else "image_uri"}
    missing = next((name for name, own in given.items() if own not in names), None)
    if missing is not None:
        raise CatalogError(f"{where}: the column {missing} is missing; found {', '.join(names)}")
    product, image = (pc.fill_null(convert(batch.column(given[n]), "text").values, "") for n in ("product_id", "image"))
    position = (
        convert(batch.column("position"), "number").values if "position" in names else pa.nulls(batch.num_rows, pa.float64())
    )
    usable = pc.and_(pc.not_equal(product, ""), pc.not_equal(image, ""))
    if "kind" in names:
        kind = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(convert(batch.column("kind"), "text").values, "")))
        usable = pc.and_(usable, pc.invert(pc.is_in(kind, pa.array(NO_PICTURES))))
    return pa.table([product, image, position], schema=SCHEMA).filter(usable)


def with_pictures(
    products: Iterable[pa.RecordBatch], rows: Iterator[pa.RecordBatch] | None, where: str
) -> Iterator[pa.RecordBatch]:
    """Products in order of product_id, each with the addresses of its rows, by position, as the column PICTURE_ROWS.

    The rows are read to their end before the first product, as one connection gives one answer at a time; what is more than
    sorting.IN_MEMORY_BYTES of them waits on disk. Without rows at all the products are as they are.
    """
    first = next(rows, None) if rows is not None else None
    if first is None or rows is None:
        yield from products
        return
    waiting = sorted_batches(_usable(first, rows, where), BATCH_ROWS)
    held = SCHEMA.empty_table()  # rows of this product and of later ones
    more = next(waiting, None)
    unused = 0
    for batch in products:
        if "product_id" not in batch.schema.names or not batch.num_rows:
            yield batch
            continue
        ids = product_ids(batch)
        ends = pc.min_max(ids).as_py()
        last = ends["max"]
        while more is not None and (not len(held) or held["product_id"][-1].as_py() <= last):
            wanted = more.filter(pc.greater_equal(more["product_id"], ends["min"]))  # a copy that goes on passes all earlier ones
            unused += more.num_rows - wanted.num_rows
            held = pa.concat_tables([held, pa.Table.from_batches([wanted])])
            more = next(waiting, None)
        due = pc.less_equal(held["product_id"], last)
        now, held = held.filter(due), held.filter(pc.invert(due)).combine_chunks()
        lists, used = _lists(ids, now)
        unused += len(now) - used
        yield _appended(batch, lists)
    unused += len(held) + (more.num_rows if more is not None else 0) + sum(b.num_rows for b in waiting)
    if unused:
        log.info("%s: %d pictures belong to no product that was read", where, unused)


def attach_pictures(
    products: Sequence[pa.RecordBatch], rows: Iterator[pa.RecordBatch] | None, where: str
) -> list[pa.RecordBatch]:
    """The same for a few products in any order: the rows are read once, and only those of these products are held."""
    first = next(rows, None) if rows is not None else None
    if first is None or rows is None:
        return list(products)
    ids = [product_ids(b) if "product_id" in b.schema.names else pa.array([""] * b.num_rows) for b in products]
    wanted = pa.chunked_array(ids, pa.string())
    found = [SCHEMA.empty_table()]
    for batch in _usable(first, rows, where):
        found.append(pa.Table.from_batches([batch.filter(pc.is_in(batch["product_id"], wanted.combine_chunks()))]))
    table = pa.concat_tables(found)
    return [_appended(b, _lists(i, table)[0]) for b, i in zip(products, ids, strict=True)]


def _appended(batch: pa.RecordBatch, lists: pa.ListArray) -> pa.RecordBatch:
    names = [n for n in batch.schema.names if n != PICTURE_ROWS]
    return batch.select(names).append_column(PICTURE_ROWS, lists)


def _usable(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    def batches() -> Iterator[pa.RecordBatch]:
        yield first
        yield from rest

    for batch in batches():
        yield from read_rows(batch, where).combine_chunks().to_batches()


def _lists(ids: pa.Array, rows: pa.Table) -> tuple[pa.ListArray, int]:
    """The addresses of each product (n,) list<string>, in order, and how many rows that are."""
    rows = rows.sort_by(ORDER)
    owners = rows["product_id"].to_numpy()
    wanted = ids.to_numpy(zero_copy_only=False)
    starts, ends = (
        np.searchsorted(owners, wanted, side) if len(owners) else np.zeros(len(wanted), int) for side in ("left", "right")
    )
    counts = ends - starts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    images = one_array(rows["image"].take(pa.array(places)))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), images).cast(TYPES["uris"]), int(offsets[-1])
