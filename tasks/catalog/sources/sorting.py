"""Rows of a file in order of product_id, in bounded memory: a large file is split into ranges of ids on disk, each sorted by itself."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.columns import convert

IN_MEMORY_BYTES = 128 << 20
"""Most bytes of rows that are sorted at once."""
MOST_RANGES = 400
"""Files that are open at once."""
SAMPLED = 50
"""Ids taken of every batch, from which the bounds of the ranges are drawn."""


def sorted_batches(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches' rows in byte order of product_id as a text, in batches of `rows`. Without such a column: as they come."""
    held: list[pa.RecordBatch] = []
    waiting = iter(batches)
    size = 0
    for batch in waiting:
        held.append(batch)
        size += batch.nbytes
        if "product_id" not in batch.schema.names or size > IN_MEMORY_BYTES:
            break
    if held and "product_id" not in held[0].schema.names:
        yield from held
        yield from waiting
    elif size <= IN_MEMORY_BYTES:
        yield from _sorted(held, rows)
    else:
        yield from _by_ranges(held, waiting, rows)


def beyond(batch: pa.RecordBatch, after: str) -> pa.RecordBatch:
    """The rows with a product_id greater than `after`; all of them for "", or without such a column."""
    if not after or "product_id" not in batch.schema.names:
        return batch
    return batch.filter(pc.greater(product_ids(batch), after))


def product_ids(batch: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(convert(batch.column("product_id"), "text").values, "")


def _sorted(batches: list[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    if not batches:
        return
    order = pc.sort_indices(pa.chunked_array([product_ids(b) for b in batches]))
    yield from pa.Table.from_batches(batches).take(order).to_batches(max_chunksize=rows)


def _by_ranges(held: list[pa.RecordBatch], waiting: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Writes the rows to one file, then by ranges of ids to several, and reads these one after the other.

    The files have no names, so that nothing of them is left where the process is killed.
    """
    with ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile())
        bounds = _bounds(*_write(held, waiting, whole))
        ranges = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(len(bounds) + 1)]
        _split(whole, bounds, ranges)
        for file in ranges:
            reader = _reader(file)
            yield from _sorted([reader.get_batch(n) for n in range(reader.num_record_batches)], rows)
            file.close()


def _write(held: list[pa.RecordBatch], waiting: Iterator[pa.RecordBatch], file: IO[bytes]) -> tuple[list[str], int]:
    """Writes all batches; gives a sample of their ids, and their bytes."""
    sample: list[str] = []
    size = 0
    with pa.ipc.new_file(pa.PythonFile(file, "w"), held[0].schema) as writer:
        for batch in chain(_emptied(held), waiting):
            size += batch.nbytes
            ids = product_ids(batch)
            sample += ids.take(pa.array(np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids))).astype(np.int64))).to_pylist()
            writer.write_batch(batch)
            del batch, ids
            pa.default_memory_pool().release_unused()  # what another thread has read is not given back by itself
    return sample, size


def _bounds(sample: list[str], size: int) -> np.ndarray:
    """The ids at which the ranges of rows of so many bytes begin, but the first."""
    ranges = min(MOST_RANGES, -(-4 * size // IN_MEMORY_BYTES))  # a quarter each, as ids are never spread evenly
    chosen = np.linspace(0, len(sample) - 1, ranges + 1).astype(int)[1:-1]
    return np.unique(np.array(sorted(sample), object)[chosen])


def _reader(file: IO[bytes]) -> pa.ipc.RecordBatchFileReader:
    file.seek(0)
    return pa.ipc.open_file(pa.PythonFile(file, "r"))


def _emptied(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a list, each gone from it once it is taken."""
    while batches:
        yield batches.pop(0)


def _split(whole: IO[bytes], bounds: np.ndarray, ranges: Sequence[IO[bytes]]) -> None:
    """Writes the rows whose id lies between bounds n - 1 and n to range `n`, and closes `whole`."""
    reader = _reader(whole)
    writers = [pa.ipc.new_file(pa.PythonFile(file, "w"), reader.schema) for file in ranges]
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        where = np.searchsorted(bounds, product_ids(batch).to_numpy(zero_copy_only=False).astype(object), side="right")
        ordered = batch.take(pa.array(np.argsort(where, kind="stable")))
        counts = np.bincount(where, minlength=len(writers))
        for place, (start, count) in enumerate(zip(np.cumsum(counts) - counts, counts, strict=True)):
            if count:
                writers[place].write_batch(ordered.slice(int(start), int(count)))
    for writer in writers:
        writer.close()
    whole.close()
