"""Measures how fast an encoder embeds here, on a few pictures and titles of the catalogue, as the embedding job does it."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.encoder import EncoderFolder
from serving.contract.preprocess import ImageRejected
from serving.versions.text_encoder import TextEncoder
from tasks.embed import worker
from tasks.embed.images import read_image
from tasks.embed.store import SHA_TYPE
from tasks.errors import VitrineError

log = logging.getLogger(__name__)

SAMPLE_S = 4.0
"""About how long is measured; a batch that takes longer is measured once."""
MOST_BATCHES = 8
"""Batches for each worker at most: of a quick encoder they take less than SAMPLE_S, and tell as much."""
DISTINCT = 256
"""Pictures that are read for it, at most; they are repeated where batches need more."""
READ_S = 60.0
"""How long pictures are read for it: a host that does not answer must not hold the plan up."""


def sample_pace(uris: Sequence[str], config: worker.WorkerConfig, workers: int, work: Path) -> tuple[float, int]:
    """(pictures a second, pictures measured) of `workers` at once, each with full batches; vectors go to `work` and are not kept.

    `config` is the job's; its store is not written to. Raises VitrineError when no picture of `uris` can be read.
    """
    shutil.rmtree(work / "sample", ignore_errors=True)  # of an attempt that was killed: a chunk that is done is not measured
    config = replace(config, store_uri=str(work / "sample"), progress_dir="")
    pictures = _readable(uris, config)
    if not pictures:
        raise VitrineError(f"none of {len(uris)} pictures could be read")
    endless = cycle(pictures)
    chunks = (_chunk(work / f"sample-{n}.parquet", islice(endless, config.batch)) for n in range(2))
    for number, chunk in enumerate(chunks):  # the first opens the encoder; runs differ, as the same few pictures may come again
        began = time.monotonic()
        worker.embed_chunk(chunk, replace(config, run=f"sample-{number}"))
    batches = min(max(int(SAMPLE_S / (time.monotonic() - began)), 1), MOST_BATCHES)
    rows = batches * config.batch
    timed = [_chunk(work / f"timed-{n}.parquet", islice(endless, rows)) for n in range(workers)]
    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(worker.embed_chunk, chunk, replace(config, run=f"timed-{n}")) for n, chunk in enumerate(timed)]
        for job in jobs:
            job.result()
    took = time.monotonic() - began
    log.info("%d pictures in %.2f s by %d workers", workers * rows, took, workers)
    return workers * rows / took, workers * rows


def sample_titles(titles: Sequence[str], encoders: EncoderFolder) -> float:
    """Titles a second of this process, as the job embeds them: one at a time, in as many threads as there are processors."""
    text = TextEncoder.open(encoders)
    if text is None:
        raise VitrineError("the encoder version has no text tower, so it embeds no titles")
    text.encode(titles[0])  # opens what is opened at the first
    some = titles[:: max(-(-len(titles) // DISTINCT), 1)]
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(text.encode, some))
    return len(some) / (time.monotonic() - began)


def local_workers(master: str) -> int:
    """Workers of local[n]; 1 for a cluster, whose size is not known before it is asked."""
    threads = master.partition("[")[2].rstrip("]").partition(",")[0]
    if threads == "*":
        return os.cpu_count() or 1
    return int(threads) if threads.isdigit() else 1


def _readable(uris: Sequence[str], config: worker.WorkerConfig) -> list[tuple[bytes, str]]:
    """(sha256, uri) of some pictures, evenly chosen; those that cannot be read are left out."""
    step = max(-(-len(uris) // DISTINCT), 1)
    found, end = [], time.monotonic() + READ_S
    for uri in uris[::step]:
        if time.monotonic() > end:
            break
        try:
            found.append((hashlib.sha256(read_image(uri, config.image_root, config.web)).digest(), uri))
        except ImageRejected:
            continue
    return found


def _chunk(path: Path, pictures: Iterable[tuple[bytes, str]]) -> str:
    shas, uris = zip(*pictures, strict=True)
    pq.write_table(pa.table({"image_sha256": pa.array(shas, SHA_TYPE), "image_uri": list(uris)}), path)
    return str(path)
