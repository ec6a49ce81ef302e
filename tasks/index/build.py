"""Builds each shard's base segment from the template. Deterministic to the byte."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import ContractError, FileRef, atomic_write, describe, verify
from serving.contract.keys import shard_of
from serving.contract.palette import PALETTE
from serving.contract.segments import ROW_COLUMNS, write_index, write_rows
from serving.index.searcher import omp_threads
from tasks.catalog.snapshot import product_batches
from tasks.errors import VitrineError
from tasks.index.coarse import fast_adding
from tasks.index.families import FAMILIES
from tasks.index.graph_reordering import group
from tasks.index.quantizer_codes import code_adder
from tasks.index.template import Template, empty_index
from tasks.index.vectors import check_vectors, shard_batches, shard_counts, shard_palettes
from tasks.progress import Progress
from tasks.records import Record, RecordError

BUILT = "built.json"
"""The record of a shard, written when its files are whole."""
LEFT_OUT = ("description", "priority", PALETTE)


@dataclass(frozen=True)
class BuiltShard(Record):
    """A shard's base segment: its files below the folder `uri`, by their names. `source` hashes what it was built from."""

    shard: int
    rows: int
    family: str
    uri: str
    index: FileRef
    table: FileRef
    source: str = ""


def source_of(vectors_uri: str, snapshot_uri: str, template: Template) -> str:
    """Hash of a shard's inputs: with equal ones the same files are built."""
    return hashlib.sha256("\n".join([vectors_uri, snapshot_uri, template.factory, template.sha256]).encode()).hexdigest()


def build_shard(vectors_uri: str, snapshot_uri: str, template: Template, shard: int, folder: Path) -> BuiltShard:
    """Builds a shard's base segment in `folder`: index position i is table row i, by key, or regrouped for graphs.

    What an earlier attempt built whole from the same input is verified and kept; anything else is built again.
    """
    source = source_of(vectors_uri, snapshot_uri, template)
    kept = _existing_build(folder, source)
    if kept is not None:
        return kept
    keys = []
    total = shard_counts(vectors_uri, template.shards)[0][shard]
    index = empty_index(template)
    # A graph's links depend on the order in which threads insert, so it is built by one.
    threads = 1 if FAMILIES[template.family].sequential else _all_threads()
    with (
        Progress(f"add vectors, shard {shard}", total, "vectors") as progress,
        omp_threads(threads),
        code_adder(index) as add,
        fast_adding(index),
    ):
        for block, vectors in shard_batches(vectors_uri, shard):
            check_vectors(vectors, block, template.dim)
            add(vectors)
            keys.append(block)
            progress.add(len(block))
    key = np.concatenate(keys) if keys else np.zeros(0, np.int64)
    _check_keys(key, shard, template.shards)
    palettes = shard_palettes(vectors_uri, [shard])
    order = group(index, f", shard {shard}")
    if order is not None:
        key, palettes = key[order], palettes and palettes.take(pa.array(order))
    table = with_palettes(rows_of(snapshot_uri, key, shard, template.shards), palettes)
    folder.mkdir(parents=True, exist_ok=True)
    faiss_path, rows_path = folder / f"base-{shard:05d}.faiss", folder / f"base-{shard:05d}.parquet"
    write_index(faiss_path, index)
    write_rows(rows_path, table)
    index_ref, table_ref = (describe(p, p.name) for p in (faiss_path, rows_path))
    built = BuiltShard(shard, len(table), template.family, str(folder), index_ref, table_ref, source)
    with atomic_write(folder / BUILT) as path:
        path.write_text(json.dumps(built.to_json()))
    return built


def rows_of(snapshot_uri: str, keys: np.ndarray, shard: int, shards: int) -> pa.Table:
    """A shard's row table: the snapshot's rows of these keys, in order. Raises VitrineError for an unknown key."""
    parts = []
    for batch in product_batches(snapshot_uri):
        table = pa.Table.from_batches([batch])
        kept = [*ROW_COLUMNS, *(n for n in table.column_names if n not in ROW_COLUMNS and n not in LEFT_OUT)]
        parts.append(table.select(kept).filter(pa.array(shard_of(table["key"].to_numpy(), shards) == shard)))
    table = pa.concat_tables(parts).combine_chunks()
    places = pc.index_in(pa.array(keys), table["key"])
    if places.null_count:
        lost = keys[pc.is_null(places).to_numpy(zero_copy_only=False)][0]
        raise VitrineError(f"a vector has key {lost}, which is not in the snapshot {snapshot_uri}: it belongs to another one")
    return table.take(places).combine_chunks()


def with_palettes(rows: pa.Table, palettes: pa.ChunkedArray | None) -> pa.Table:
    """Segment rows with the palettes of their pictures, where known; both in the same order."""
    return rows if palettes is None else rows.append_column(PALETTE, palettes.combine_chunks())


def _existing_build(folder: Path, source: str) -> BuiltShard | None:
    """The shard already built in the folder, when it is complete and from the same source."""
    done = folder / BUILT
    if not done.is_file():
        return None
    try:
        kept = BuiltShard.from_json(json.loads(done.read_text()) | {"uri": str(folder)})
        for ref in (kept.index, kept.table):
            verify(folder / ref.path, ref)
    except (ContractError, RecordError):
        return None
    return kept if kept.source == source else None


def _all_threads() -> int:
    import faiss

    return faiss.omp_get_max_threads()


def _check_keys(keys: np.ndarray, shard: int, shards: int) -> None:
    if (np.diff(keys) <= 0).any():
        again = keys[1:][np.diff(keys) <= 0][0]
        raise VitrineError(
            f"shard {shard}: key {again} occurs twice or out of order in the vectors; run the embedding step again"
        )
    if (shard_of(keys, shards) != shard).any():
        raise VitrineError(f"shard {shard}: it holds vectors of other shards; they were written for another number of shards")
