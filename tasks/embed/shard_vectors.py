"""Writes a run's vectors by shard, sorted by key: the input of index builds."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.contract.keys import shard_of
from serving.contract.palette import PALETTE, PALETTE_TYPE
from serving.contract.segments import POSITION, fixed_column
from tasks import storage
from tasks.embed.store import PLAIN, SHA_TYPE, Commit, EmbeddingStore, vector_column, vector_type
from tasks.progress import Progress

PASS_BYTES = 5 * 2**29
"""Vectors held at once: 10M x 512 float16 take four passes over the store."""
GROUP_ROWS = 50_000


def write_shards(
    usable: pa.Table,
    store: EmbeddingStore,
    commits: Sequence[Commit],
    vectors_uri: str,
    shards: int,
    pass_bytes: int = PASS_BYTES,
) -> None:
    """Writes shard=<i>/part-<n>.parquet (key, image_sha256, palette, vector) from `usable` (key, position int16, sha256), which is in
    order of key and position. Where a position is another than 0, the parts have it too.

    A pass over the store collects at most `pass_bytes` of vectors, of one shard after the other; parts are in the order of `usable`.
    """
    owner = shard_of(usable["key"].to_numpy(), shards)
    rows = usable.take(pa.array(np.argsort(owner, kind="stable"))).combine_chunks()
    ends = np.cumsum(np.bincount(owner, minlength=shards)).tolist()
    schema = pa.schema([
        pa.field("key", pa.int64(), nullable=False), pa.field("image_sha256", SHA_TYPE, nullable=False),
        pa.field(PALETTE, PALETTE_TYPE, nullable=False), pa.field("vector", vector_type(store.dim), nullable=False),
    ])  # fmt: skip
    several = has_positions(usable)
    if several:
        schema = schema.append(pa.field(POSITION, pa.int16(), nullable=False))
    most = max(pass_bytes // (2 * store.dim), 1)
    parts = [0] * shards

    def write(shard: int, table: pa.Table) -> None:
        name = f"part-{parts[shard]:05d}.parquet"
        with storage.writer(storage.join(vectors_uri, f"shard={shard}", name)) as stream:
            pq.write_table(table, stream, row_group_size=GROUP_ROWS, write_page_checksum=True, **PLAIN)
        parts[shard] += 1
        progress.add(len(table))

    def collect(start: int) -> None:
        """One pass; nothing of it is held when the next begins."""
        piece = rows.slice(start, most).combine_chunks()
        sha = piece["sha256"].combine_chunks()
        vectors, palettes = store.gather(sha, commits)
        for shard, end in enumerate(ends):
            first = max(ends[shard - 1] if shard else 0, start) - start
            last = min(end - start, len(piece))
            if first < last:
                cut = slice(first, last)
                columns = [piece["key"][cut], sha[cut], fixed_column(palettes[cut]), vector_column(vectors[cut])]
                columns += [piece[POSITION][cut]] if several else []
                write(shard, pa.table(columns, schema=schema))

    with Progress("write vectors", len(usable), "vectors") as progress:
        for start in range(0, len(rows), most):
            collect(start)
        for shard in range(shards):
            if not parts[shard]:
                write(shard, schema.empty_table())


def has_positions(usable: pa.Table) -> bool:
    """Whether a picture (of a table with or without the column POSITION) is another than its product's main one."""
    return POSITION in usable.column_names and bool(pc.any(pc.not_equal(usable[POSITION], 0)).as_py())


def distinct_pictures(good: pa.Table) -> pa.Table:
    """Usable pictures (key, position, sha256) in order of key and position; of equal ones of a product the first."""
    if not has_positions(good):
        return good.sort_by("key")
    first = good.group_by(["key", "sha256"], use_threads=False).aggregate([(POSITION, "min")])
    order = [("key", "ascending"), (POSITION, "ascending")]
    return pa.table({"key": first["key"], POSITION: first["position_min"], "sha256": first["sha256"]}).sort_by(order)
