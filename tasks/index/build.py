"""Trains the template shared by all shards, and builds each shard's base segment from it. Deterministic to the byte."""

import hashlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
from tasks.index.choice import Budget, Requirements, choose_family
from tasks.index.coarse import fast_adding, fast_training
from tasks.index.families import FAMILIES, Family, least_training, list_count
from tasks.index.grouping import group
from tasks.index.quantizer_codes import choose_codes, code_adder
from tasks.index.vectors import check_vectors, sample_vectors, shard_batches, shard_counts, shard_palettes
from tasks.progress import Progress

log = logging.getLogger(__name__)

EF_CONSTRUCTION = 100
"""Neighbours weighed for each new node of a graph. FAISS's own 40 needs over twice the ef for recall@10 0.95 of a million hard vectors."""
OPQ_ROUNDS, OPQ_VECTORS = 8, 20_000
"""FAISS's own 50 rounds over 65,536 vectors take minutes and gained nothing that a tuned nprobe does not."""
DRIFT_LIMIT = 0.02
"""A template is used again while vectors lie at most this much farther (cosine) from their coarse centroid than at its training."""
DRIFT_SAMPLE = 20_000
LEFT_OUT = ("description", "priority", PALETTE)


@dataclass(frozen=True)
class IndexConfig:
    """What determines an index's content besides its input data."""

    shards: int = 2
    family: str = ""
    """A name of tasks.index.families, or "" to choose by size, recall and budget."""
    sample: int = 200_000
    """Training vectors, taken evenly from all shards; more where the lists of many rows need more (`training_vectors`)."""
    seed: int = 7
    recall_target: float = 0.95
    budget: Budget = field(default_factory=Budget)
    """What decides the family where none is named."""


@dataclass(frozen=True)
class Template:
    """A trained, empty index that every shard starts from; `file` is empty for families without training.

    `fit` is the mean cosine of training vectors to their coarse centroid (0: no lists); `reason` says whether it was trained
    or taken over, and why.
    """

    family: str
    factory: str
    dim: int
    shards: int
    rows: int
    file: str = ""
    sha256: str = ""
    vectors_uri: str = ""
    fit: float = 0.0
    reason: str = ""
    families: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltShard:
    """A shard's base segment as local files; `index` and `table` as FileRef in the manifest, `source` hashes its inputs."""

    shard: int
    rows: int
    family: str
    folder: str
    index: dict
    table: dict
    source: str = ""

    def index_ref(self) -> FileRef:
        return FileRef(**self.index)

    def table_ref(self) -> FileRef:
        return FileRef(**self.table)


def train_template(
    vectors_uri: str, config: IndexConfig, folder: Path, previous: Template | None = None, refused: str = ""
) -> Template:
    """Trains the family on a sample of all shards, or reuses `previous` while its centroids still fit.

    A family without centroids is always trained.
    `refused` says why there is no `previous` to take over; the template's `reason` repeats it.

    Raises VitrineError when there is too little to train on, or no family fits the budget.
    """
    counts, dim = shard_counts(vectors_uri, config.shards)
    rows = sum(counts)
    if rows == 0:
        raise VitrineError("no product has a vector, so there is nothing to index; look at the quarantine of the embedding step")
    need = Requirements(rows, dim, config.shards, config.recall_target, config.budget, os.cpu_count() or 1)
    choice = choose_family(need, config.family)
    family = choice.family
    for name, why in choice.reasons.items():
        log.info("family %s: %s", name, why)
    nlist = list_count(rows)
    made = Template(
        family.name, family.factory(dim, nlist), dim, config.shards, rows, vectors_uri=vectors_uri, families=choice.reasons
    )
    if not family.trained:
        return _with(made, reason=f"{family.name} needs no training")
    if previous is not None:
        refused = _refuse_reuse(previous, made, config)
        if not refused:
            return _with(
                previous,
                rows=rows,
                vectors_uri=vectors_uri,
                families=choice.reasons,
                reason="taken over: its centroids still fit",
            )
    least = least_training(family, rows)
    if rows < least:
        raise VitrineError(
            f"{made.factory} needs at least {least} training vectors and there are {rows}: use the family flat for so few"
        )
    sample = sample_vectors(vectors_uri, config.shards, training_vectors(family, rows, config), config.seed)
    index = make_index(dim, made.factory)
    with Progress("train the template", 1, "templates") as progress, fast_training(index):
        index.train(sample)
        trial = choose_codes(index, sample, config.seed)
        progress.add()
    path = folder / "template.faiss"
    write_index(path, index)
    fit = coarse_fit(index, sample[:DRIFT_SAMPLE])
    why = f"trained on {len(sample)} vectors" + (f": {refused}" if refused else "") + (f"; {trial}" if trial else "")
    return _with(made, file=str(path), sha256=describe(path, path.name).sha256, fit=fit, reason=why)


def training_vectors(family: Family, rows: int, config: IndexConfig) -> int:
    """Number of training vectors: the configured sample, or the minimum that the number of lists requires.

    A sample is drawn row by row and comes out smaller or larger by a few standard deviations, so six of them are asked for more.
    Lists grow with the square root of the rows and the sample with them: at 512-d it holds 0.7 GB from 10.7M rows on and 1.3 GB
    from 43M, and as much again while it is put together.
    """
    least = least_training(family, rows)
    return max(config.sample, least + math.ceil(6 * least**0.5))


def build_shard(vectors_uri: str, snapshot_uri: str, template: Template, shard: int, folder: Path) -> BuiltShard:
    """Builds a shard's base segment in `folder`: index position i is table row i, by key, or regrouped for graphs.

    What an earlier attempt built whole from the same input is verified and kept; anything else is built again.
    """
    source = hashlib.sha256("\n".join([vectors_uri, snapshot_uri, template.factory, template.sha256]).encode()).hexdigest()
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
    index_ref, table_ref = (describe(p, p.name).model_dump() for p in (faiss_path, rows_path))
    built = BuiltShard(shard, len(table), template.family, str(folder), index_ref, table_ref, source)
    with atomic_write(folder / "built.json") as path:
        path.write_text(json.dumps(asdict(built)))
    return built


def coarse_fit(index: Any, vectors: np.ndarray) -> float:
    """Mean similarity of vectors (n, d) to their nearest coarse centroid; 0 for a family without lists."""
    import faiss

    view = faiss.downcast_index(index)  # owns nothing: `index` must stay referenced
    if isinstance(view, faiss.IndexRefine):
        return coarse_fit(view.base_index, vectors)
    if isinstance(view, faiss.IndexPreTransform):
        return coarse_fit(view.index, faiss.downcast_VectorTransform(view.chain.at(0)).apply(vectors))
    if not isinstance(view, faiss.IndexIVF) or not len(vectors):
        return 0.0
    return float(view.quantizer.search(np.ascontiguousarray(vectors), 1)[0].mean())


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


def _refuse_reuse(previous: Template, required: Template, config: IndexConfig) -> str:
    """Why a template cannot be reused; "" when it can.

    Without lists nothing says whether it still fits, and training, the range of each number, takes seconds.
    """
    same = ("family", "factory", "dim", "shards")
    for name in same:
        if getattr(previous, name) != getattr(required, name):
            return f"its {name} {getattr(previous, name)} is now {getattr(required, name)}"
    if not FAMILIES[required.family].per_list:
        return f"{required.family} has no lists that tell whether it still fits"
    if not Path(previous.file).is_file():
        return "its file is gone"
    sample = sample_vectors(required.vectors_uri, required.shards, DRIFT_SAMPLE, config.seed)
    fit = coarse_fit(empty_index(previous), sample)
    if fit < previous.fit - DRIFT_LIMIT:
        return f"the mean cosine to the centroids fell from {previous.fit:.3f} to {fit:.3f} (limit {DRIFT_LIMIT})"
    return ""


def _with(template: Template, **changes: Any) -> Template:
    return Template(**(asdict(template) | changes))


def make_index(dim: int, factory: str) -> Any:
    """An index from a factory string, with fewer OPQ iterations and higher HNSW efConstruction than FAISS's defaults."""
    import faiss

    made = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    index = faiss.downcast_index(made)  # a view: `made` owns the memory
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        transform.niter, transform.max_train_points = OPQ_ROUNDS, OPQ_VECTORS
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = EF_CONSTRUCTION
    return made


def _existing_build(folder: Path, source: str) -> BuiltShard | None:
    """The shard already built in the folder, when it is complete and from the same source."""
    done = folder / "built.json"
    if not done.is_file():
        return None
    kept = BuiltShard(**json.loads(done.read_text()) | {"folder": str(folder)})
    try:
        for ref in (kept.index_ref(), kept.table_ref()):
            verify(folder / ref.path, ref)
    except ContractError:
        return None
    return kept if kept.source == source else None


def _all_threads() -> int:
    import faiss

    return faiss.omp_get_max_threads()


def empty_index(template: Template) -> Any:
    """The empty index of a template, to add vectors to."""
    import faiss

    if not template.file:
        return make_index(template.dim, template.factory)
    path = Path(template.file)
    verify(path, FileRef(path=path.name, sha256=template.sha256, bytes=path.stat().st_size if path.is_file() else 0))
    return faiss.read_index(str(path))


def _check_keys(keys: np.ndarray, shard: int, shards: int) -> None:
    if (np.diff(keys) <= 0).any():
        again = keys[1:][np.diff(keys) <= 0][0]
        raise VitrineError(
            f"shard {shard}: key {again} occurs twice or out of order in the vectors; run the embedding step again"
        )
    if (shard_of(keys, shards) != shard).any():
        raise VitrineError(f"shard {shard}: it holds vectors of other shards; they were written for another number of shards")
