"""The pictures of a product: its main one (image) and the further ones (images, and the rows of product_images)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.segments import IMAGES as IMAGES
from tasks.catalog.columns import kind_of
from tasks.catalog.values import TYPES, Kind

PICTURE_ROWS = "product_images"
"""The column in which a source gives what its table of pictures holds; IMAGES is the catalogue's own column of further pictures."""
PICTURE_LISTS: dict[str, Kind] = {IMAGES: "uris", PICTURE_ROWS: "uris"}
NOT_A_LIST = "it is no list of pictures (a list of addresses, or a text that holds a JSON array of them)"


TOO_LONG = "every address is longer than {}: VITRINE_MAX_URI_LENGTH"


def fits(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold lists of addresses."""
    return pa.types.is_null(kind) or kind_of(kind) in ("text", "names")


def choose_pictures(main: str, listed: Sequence[str], longest_uri: int, most: int) -> tuple[str, list[str], int]:
    """The main picture ("" for none), the further ones in order, and how many were left out.

    Without a main picture the first of the list is it. None is there twice. Left out are those beyond `most` pictures in all, and
    further ones with an address of more than `longest_uri` characters.
    """
    each = [uri for uri in dict.fromkeys(listed) if uri and uri != main]
    further = [uri for uri in each if len(uri) <= longest_uri]
    if not main and further:
        main, further, each = further[0], further[1:], each[1:]
    further = further[: max(most - 1, 0)]
    return main, further, len(each) - len(further)


def merge_pictures(main: pa.Array, lists: Sequence[pa.Array], longest_uri: int, most: int) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Main pictures (n,) string, further pictures (n,) list<string> and numbers left out (n,) int32, from main pictures and from one
    or more columns of lists, of which the earlier come first."""
    if not any(len(column.flatten()) for column in lists):
        return main, lists[0], pa.array(np.zeros(len(main), np.int32))
    chosen = [
        choose_pictures(uri or "", [u for part in parts for u in part or ()], longest_uri, most)
        for uri, *parts in zip(main.to_pylist(), *(column.to_pylist() for column in lists), strict=True)
    ]
    mains, further, left_out = zip(*chosen, strict=True)
    return pa.array(mains, pa.string()), pa.array(further, TYPES["uris"]), pa.array(left_out, pa.int32())


def with_further(table: pa.Table, first: Sequence[str]) -> pa.Table:
    """The table with its column IMAGES behind the columns `first`, and without it where no row has a further picture."""
    if IMAGES not in table.column_names:
        return table
    if not further_count(table):
        return table.drop_columns([IMAGES])
    lists = table[IMAGES]
    if lists.null_count:  # of batches without the column
        lists = pa.array([row or [] for row in lists.to_pylist()], TYPES["uris"])
        table = table.set_column(table.column_names.index(IMAGES), IMAGES, lists)
    others = [n for n in table.column_names if n not in first and n != IMAGES]
    return table.select([*first, IMAGES, *others])


def further_count(table: pa.Table) -> int:
    """Number of further pictures of all rows."""
    if IMAGES not in table.column_names:
        return 0
    return int(pc.sum(pc.list_value_length(table[IMAGES])).as_py() or 0)


def picture_rows(products: pa.Table | pa.RecordBatch) -> pa.Table:
    """A row for each picture of products (key, image_uri and, where there are further ones, images): key, position int16, image_uri.

    In order of the products, each one's main picture (position 0) first, then images[i - 1] as position i.
    """
    count = len(products)
    if IMAGES not in products.schema.names:
        position = pa.array(np.zeros(count, np.int16))
        return pa.table({"key": products["key"], "position": position, "image_uri": products["image_uri"]})
    table = pa.table(products) if isinstance(products, pa.RecordBatch) else products
    further = one_array(table[IMAGES])
    lengths = pc.fill_null(pc.list_value_length(further), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    owner = np.repeat(np.arange(count), lengths + 1)
    position = np.arange(len(owner)) - np.repeat(starts, lengths + 1)
    # The main pictures, then all further ones one after the other: where each row's picture is in that.
    place = np.where(position == 0, owner, count + np.arange(len(owner)) - owner - 1)
    uris = pa.chunked_array([one_array(table["image_uri"]), further.flatten()], pa.string()).take(pa.array(place))
    return pa.table(
        {"key": table["key"].take(pa.array(owner)), "position": pa.array(position.astype(np.int16)), "image_uri": uris}
    )


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, also where pyarrow's own `combine_chunks` keeps chunks."""
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found
