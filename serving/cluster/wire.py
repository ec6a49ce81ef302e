"""Wire format between a gateway and its shard processes: an Arrow IPC stream of one record batch, in an HTTP body.

The header (version, digest, shard, k, filter) is JSON in the schema's metadata; vectors, similarities and row handles are columns
with one row per query, fixed-size lists where a query has several numbers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
MAX_BYTES = 8 * 2**20
SEARCH, VECTORS, STATE = "/shard/search", "/shard/vectors", "/shard/state"
HEADER = b"vitrine"
TYPES = {"f": pa.float32(), "i": pa.int64()}


def pack(header: Mapping[str, Any], **arrays: np.ndarray) -> bytes:
    """Serialises a header and arrays: float32 or int64, one- or two-dimensional, of equal length, as columns by name."""
    columns = {name: _column(array) for name, array in arrays.items()}
    schema = pa.schema([(n, c.type) for n, c in columns.items()], {HEADER: json.dumps(dict(header)).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        if columns:
            stream.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return sink.getvalue().to_pybytes()


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Parses a message into its header and its arrays (read-only) by name. Raises ValueError for an invalid message."""
    try:
        with pa.ipc.open_stream(body) as stream:
            header = json.loads((stream.schema.metadata or {})[HEADER])
            table = stream.read_all()
        if not isinstance(header, dict) or len(body) > MAX_BYTES:
            raise ValueError
        table.validate(full=True)
        return header, {name: _array(table[name]) for name in table.column_names}
    except (ValueError, KeyError, TypeError, OSError, RecursionError, MemoryError, pa.ArrowException):
        raise ValueError(f"{len(body)} bytes are no message between a gateway and a shard") from None


def _column(array: np.ndarray) -> pa.Array:
    values = pa.array(np.ascontiguousarray(array).reshape(-1), TYPES[array.dtype.kind])
    return values if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, array.shape[1])


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) or (n, size). Raises ValueError for other types than `pack` writes, and for nulls."""
    values, kind = column.combine_chunks(), column.type
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    inner = values.flatten() if size is not None else values
    if inner.type not in TYPES.values() or values.null_count or inner.null_count:
        raise ValueError
    flat = inner.to_numpy(zero_copy_only=False)
    return flat if size is None else flat.reshape(len(values), size)
