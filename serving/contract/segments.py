"""Reads and writes the files of a segment: a FAISS index over positions, and a Parquet table with one row a product.

Row i of the table describes position i, unless products have several pictures: then a second table does, whose rows name the product.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.addresses import error_line
from serving.contract.files import ContractError, atomic_write

if TYPE_CHECKING:
    import faiss

ROW_COLUMNS = (
    "key", "product_id", "title", "brand", "category", "price", "currency", "in_stock", "popularity", "image_uri", "updated_at",
)  # fmt: skip
"""Columns of every row table, in this order; the catalogue's own columns follow them."""

IMAGES = "images"
"""Optional column of a row table, list<string>: the further pictures of a product, in order."""
POSITION = "position"
"""Column of which of its product's pictures a vector is of, int16: 0 the main one, i is images[i - 1]. Absent where all are main ones."""
PICTURES = pa.schema([("product", pa.int64()), (POSITION, pa.int16()), ("image_sha256", pa.binary(32))])
"""The table of a segment's pictures. `product`: the key; `position`: 0 the main picture, i the i-th of `images`, -1 the title embedded
as text; `image_sha256`: null where it is not known any more."""


def lists_pictures(schema: pa.Schema) -> bool:
    """Whether the column IMAGES is there and lists pictures; tables from before may have one of the shop's own, such as a count."""
    kind = schema.field(IMAGES).type if IMAGES in schema.names else pa.null()
    return bool(pa.types.is_list(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)))


def write_rows(path: Path, table: pa.Table) -> None:
    """Writes a table of a segment: products, pictures, or a tombstone's keys. The same table gives the same bytes."""
    with atomic_write(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd", store_schema=False)


def read_rows(path: Path, columns: Sequence[str] = ("key",), rows: int | None = None) -> pa.Table:
    """Reads a row table. Raises ContractError for an invalid file, a missing column of `columns`, or another number of `rows`."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError(f"{path.name}: not a readable Parquet file: {error}") from None
    if missing := [n for n in columns if n not in table.column_names]:
        raise ContractError(f"{path.name}: it has no column {missing[0]!r}, which every such table has")
    if not pa.types.is_int64(kind := table.schema.field("key").type):
        raise ContractError(f"{path.name}: its keys are {kind}, where int64 is expected")
    if rows is not None and len(table) != rows:
        raise ContractError(f"{path.name}: {len(table)} rows, where the manifest says {rows}")
    return table


def read_pictures(path: Path, rows: int, columns: Sequence[str] = ("product", "position")) -> pa.Table:
    """Reads columns of a segment's pictures. Raises ContractError for an invalid file, other columns, nulls, or another count."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError(f"{path.name}: not a readable Parquet file: {error}") from None
    for name in columns:
        if name not in table.column_names or table.schema.field(name).type != PICTURES.field(name).type:
            raise ContractError(
                f"{path.name}: it has no column {name!r} of {PICTURES.field(name).type}, which every table of pictures has"
            )
        if name != "image_sha256" and table[name].null_count:
            raise ContractError(f"{path.name}: its column {name!r} has missing values")
    if len(table) != rows:
        raise ContractError(f"{path.name}: {len(table)} rows, where the manifest says {rows}")
    return table


def write_index(path: Path, index: "faiss.Index") -> None:
    import faiss

    with atomic_write(path) as temporary:
        faiss.write_index(index, str(temporary))


def read_index(path: Path, dim: int, rows: int) -> "faiss.Index":
    """Reads a FAISS index, memory-mapped where its type allows. Raises ContractError for other dimension, rows or metric."""
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # owns its memory: what downcast_index gives does not
    except RuntimeError as error:
        raise ContractError(f"{path.name}: FAISS cannot read it: {error_line(error)}") from None
    if index.d != dim:
        raise ContractError(f"{path.name}: vectors of dimension {index.d}, where the encoder gives {dim}")
    if index.ntotal != rows:
        raise ContractError(f"{path.name}: {index.ntotal} vectors, where the manifest says {rows}")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ContractError(f"{path.name}: its metric is not the inner product")
    return index


def unit_float32(vectors: np.ndarray) -> np.ndarray:
    """Normalises stored float16 vectors (n, d) to unit float32 rows. A zero row stays zero."""
    wide = vectors.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.ascontiguousarray(wide / np.where(norms > 0, norms, 1))


def fixed_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-size binary as (n, width) uint8; zeros where it is null."""
    width = column.type.byte_width
    filled = pc.fill_null(column, pa.scalar(bytes(width), column.type)) if column.null_count else column
    chunks = [np.frombuffer(c.buffers()[1], np.uint8, len(c) * width, c.offset * width) for c in filled.chunks if len(c)]
    return np.concatenate([np.zeros(0, np.uint8), *chunks]).reshape(-1, width)


def fixed_column(rows: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Rows (n, width) uint8 as a column of fixed-size binary."""
    data = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, data])
