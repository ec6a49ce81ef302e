"""Where views are kept: one JPEG each in the store, named after its picture; and a snapshot's table of those that stand in for photos."""

import re
import time

import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.preprocess import ImageRejected
from tasks import storage
from tasks.queries.view import VERSION

SCHEME = "view://"
TABLE = "views.parquet"
"""Beside the snapshot's parts, and written once: what the queries of a snapshot are is settled with it."""
SCHEMA = pa.schema([("photo_uri", pa.string()), ("product_id", pa.string()), ("image_uri", pa.string())])
"""`photo_uri` names the view where a photo's address would stand, `image_uri` the main picture of the product that it shows."""
RENEWED_S = 86_400.0
"""Views older than this are written anew when they are asked for: well before garbage collection may take them (a week)."""
NAME = re.compile(r"/views/[0-9a-f]{64}-\d+-\d+\.jpg$")


def view_uri(store_uri: str, image_sha256: str, number: int = 0) -> str:
    """The address of view `number` of the picture with this hash: view:// and where it lies."""
    return SCHEME + storage.join(store_uri, "views", f"{image_sha256}-{VERSION}-{number}.jpg")


def is_view(uri: str) -> bool:
    """Whether a query's address names a view, rather than a shopper's photo."""
    return uri.startswith(SCHEME)


def read_view(uri: str) -> bytes:
    """The JPEG of a view. Raises ImageRejected: nothing but a view is read by such an address, whoever wrote it."""
    if not NAME.search(uri) or ".." in uri:
        raise ImageRejected("forbidden_scheme", f"{uri}: is not the address of a view")
    try:
        return storage.read_bytes(uri.removeprefix(SCHEME))
    except FileNotFoundError:
        raise ImageRejected("missing", f"{uri}: there is no such view; a new snapshot makes it again") from None
    except OSError as error:
        raise ImageRejected("unreadable", f"{uri}: {error}") from None


def write_view(uri: str, jpeg: bytes) -> None:
    """Keeps a view, atomically."""
    storage.write_bytes(uri.removeprefix(SCHEME), jpeg)


def view_exists(uri: str) -> bool:
    """Whether the view was made before."""
    return storage.exists(uri.removeprefix(SCHEME))


def renew_view(uri: str) -> bool:
    """Whether the view was made before; an old one is written anew, as garbage collection counts the time since it was written.

    So it is not taken from a snapshot that is in the making, whose table does not name it yet.
    """
    where = uri.removeprefix(SCHEME)
    try:
        if storage.exists(where) and time.time() - storage.disk_usage(where)[1] > RENEWED_S:
            storage.write_bytes(where, storage.read_bytes(where))
    except FileNotFoundError:  # collected just now
        return False
    return storage.exists(where)


def view_table(snapshot_uri: str) -> pa.Table:
    """The views that stand in for photos in a snapshot (SCHEMA); empty where enough photos are held out, and in older snapshots."""
    uri = storage.join(snapshot_uri, TABLE)
    return storage.read_table(uri) if storage.exists(uri) else SCHEMA.empty_table()


def write_view_table(snapshot_uri: str, rows: list[dict[str, str]]) -> None:
    """Settles the views of a snapshot."""
    with storage.writer(storage.join(snapshot_uri, TABLE)) as stream:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), stream)
