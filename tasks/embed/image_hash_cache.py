"""Hash cache: sha256 by image uri, valid while size and modification time (or ETag) are unchanged."""

import hashlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.catalog.product_pictures import IMAGES, picture_rows
from tasks.catalog.snapshot import Snapshot, product_batches
from tasks.embed import worker

CHUNK_ROWS = 20_000
HASH_CACHE = "looks"
"""Folder of the cache in the store."""
URI = pa.large_string()
"""All addresses together may be more than the 2 GiB that an array of pa.string() holds: 50M of 45 bytes."""
SCHEMA = pa.schema([("image_uri", URI), ("stamp", pa.string()), ("sha256", pa.binary(32))])

ForEach = Callable[[list[str], Callable[[str], None]], None]


def hash_images(snapshot: Snapshot, work_uri: str, cache_uri: str, config: worker.WorkerConfig, for_each: ForEach) -> pa.Table:
    """worker.HASHED rows of all pictures of all products: each one's sha256, or the reason why it has none.

    Chunks that were looked at before a kill are not looked at again.
    """
    products = snapshot_pictures(snapshot)
    known = read_cache(cache_uri, snapshot.image_root)
    places = pc.index_in(products["image_uri"], known["image_uri"])
    for column in ("stamp", "sha256"):
        products = products.append_column(f"known_{column}", known[column].take(places))
    starts = range(0, len(products), CHUNK_ROWS)
    outs = [storage.join(work_uri, f"looked-{number:06d}.parquet") for number in range(len(starts))]
    waiting = []
    for start, out in zip(starts, outs, strict=True):
        if not storage.exists(out):
            waiting.append(out.replace("/looked-", "/look-"))
            with storage.writer(waiting[-1]) as stream:
                pq.write_table(products.slice(start, CHUNK_ROWS), stream)

    def work(chunk: str) -> None:
        worker.hash_chunk(chunk, chunk.replace("/look-", "/looked-"), config)

    for_each(waiting, work)
    return pa.concat_tables([storage.read_table(out) for out in outs])


def snapshot_pictures(snapshot: Snapshot) -> pa.Table:
    """All pictures of a snapshot (key, position, image_uri as URI), in order of its products and of their pictures."""
    batches = product_batches(snapshot.uri, ["key", "image_uri", IMAGES])
    table = pa.concat_tables([picture_rows(batch) for batch in batches])
    return table.set_column(2, "image_uri", table["image_uri"].cast(URI))


def read_cache(cache_uri: str, root: str) -> pa.Table:
    """The newest cache entry of each uri below `root` (SCHEMA)."""
    tables = [storage.read_table(file).cast(SCHEMA) for file in storage.list_files(_place(cache_uri, root), ".parquet")]
    if not tables:
        return SCHEMA.empty_table()
    newest = pa.concat_tables(tables).group_by("image_uri", use_threads=False).aggregate([("stamp", "last"), ("sha256", "last")])
    return pa.table({"image_uri": newest["image_uri"], "stamp": newest["stamp_last"], "sha256": newest["sha256_last"]})


def update_cache(hashed: pa.Table, cache_uri: str, root: str, run_key: str) -> None:
    """Merges this run's hashes into the cache as one file that replaces the older ones."""
    place = _place(cache_uri, root)
    before = storage.list_files(place, ".parquet")
    good = hashed.filter(pc.and_(pc.is_valid(hashed["sha256"]), pc.is_valid(hashed["stamp"]))).select(SCHEMA.names).cast(SCHEMA)
    old = read_cache(cache_uri, root)
    merged = pa.concat_tables([old.filter(pc.invert(pc.is_in(old["image_uri"], good["image_uri"]))), good])
    name = storage.join(place, f"looks-{run_key}.parquet")
    with storage.writer(name) as stream:
        pq.write_table(merged, stream, store_schema=False)  # read as pa.string(): releases of before concatenate it with theirs
    for file in before:
        if file != name:
            storage.delete(file)


def _place(cache_uri: str, root: str) -> str:
    """A folder per root, as relative uris are unique only within their root."""
    return storage.join(cache_uri, hashlib.sha256(root.encode()).hexdigest()[:16])
