"""What travels between a gateway and its shards: one HTTP body of a few named arrays behind a small JSON header.

    4 bytes "VTR1", uint32 length of the header, the header (JSON), the arrays' bytes one after another (little-endian)

The header's `arrays` lists [dtype, shape] of each. A query of dimension 512 is about 2.2 kB, an answer of 500 candidates 6 kB.
Chosen over gRPC and HTTP/2 by measurement: docs/decisions/0051.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import logs, tracing

MAGIC = b"VTR1"
KIND = "application/x-vitrine-shard"
DTYPES = ("<f4", "<i8")
MOST_BYTES = 8 * 2**20
SEARCH, VECTORS, STATE = "/shard/search", "/shard/vectors", "/shard/state"


def on_behalf() -> bytes:
    """The header lines that tell a shard for which request it is asked, and which span its own is below."""
    request_id, parent = logs.request_id.get(), tracing.parent.get()
    line = b"x-request-id: %s\r\n" % request_id.encode() if request_id else b""
    return line + b"traceparent: %s\r\n" % parent.encode() if parent else line


def pack(header: Mapping[str, Any], *arrays: np.ndarray) -> bytes:
    """One body. Arrays are float32 or int64."""
    wide = [np.ascontiguousarray(a, "<f4" if a.dtype.kind == "f" else "<i8") for a in arrays]
    told = json.dumps(dict(header) | {"arrays": [[a.dtype.str, a.shape] for a in wide]}, separators=(",", ":")).encode()
    return b"".join([MAGIC, struct.pack("<I", len(told)), told, *(a.tobytes() for a in wide)])


def unpack(body: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and the arrays (read-only views). Raises ValueError for what is no such body."""
    try:
        magic, size = struct.unpack_from("<4sI", body)
        header = json.loads(body[8 : 8 + size])
        shapes = header.pop("arrays")
        if magic != MAGIC:
            raise ValueError
        at, arrays = 8 + size, []
        for dtype, shape in shapes:
            if dtype not in DTYPES or any(not isinstance(n, int) or n < 0 for n in shape):
                raise ValueError
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(body, dtype, count, at).reshape(shape))
            at += count * np.dtype(dtype).itemsize
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        raise ValueError(f"{len(body)} bytes are no message between a gateway and a shard") from None
    if at != len(body):
        raise ValueError(f"{len(body)} bytes, where the message says {at}")
    return header, arrays
