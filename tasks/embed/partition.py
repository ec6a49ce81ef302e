"""The vectors of a run by shard, sorted by key: what an index is built from."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.keys import shard_of
from tasks import storage
from tasks.embed.store import Commit, EmbeddingStore
from tasks.progress import Progress

PASS_BYTES = 2 * 2**30
"""Vectors held at once: 10M x 512 float16 take five passes over the store, and under 5 GiB with everything around them."""


def write_shards(
    usable: pa.Table,
    store: EmbeddingStore,
    commits: Sequence[Commit],
    vectors_uri: str,
    shards: int,
    pass_bytes: int = PASS_BYTES,
) -> None:
    """Writes shard=<i>/part-<n>.parquet (key, image_sha256, vector) from `usable` (key, sha256; sorted by key).

    Each part holds at most `pass_bytes` of vectors and costs one pass over the store; parts are in order of key.
    """
    owner = shard_of(usable["key"].to_numpy(), shards)
    most = max(pass_bytes // (2 * store.dim), 1)
    with Progress("write vectors", len(usable), "vectors") as progress:
        for shard in range(shards):
            rows = usable.filter(pa.array(owner == shard))
            for number, start in enumerate(range(0, max(len(rows), 1), most)):
                part = rows.slice(start, most)
                sha = part["sha256"].combine_chunks()
                lists = pa.FixedSizeListArray.from_arrays(pa.array(store.vectors(sha, commits).ravel()), store.dim)
                table = pa.table({"key": part["key"], "image_sha256": sha, "vector": lists})
                with storage.writer(storage.join(vectors_uri, f"shard={shard}", f"part-{number:05d}.parquet")) as stream:
                    pq.write_table(table, stream, compression="none", row_group_size=100_000)
                progress.add(len(part))
