"""The template: a trained, empty index that every shard starts from, so that all shards have the same lists and codes."""

import logging
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.files import describe
from serving.contract.segments import write_index
from tasks import storage
from tasks.errors import VitrineError
from tasks.index.choice import IndexConfig, Requirements, choose_family
from tasks.index.coarse import fast_training, ivf_view
from tasks.index.families import FAMILIES, Family, least_training, list_count
from tasks.index.quantizer_codes import choose_codes
from tasks.index.vectors import sample_vectors, shard_counts
from tasks.progress import Progress
from tasks.records import Record

log = logging.getLogger(__name__)

EF_CONSTRUCTION = 100
"""Neighbours weighed for each new node of a graph. FAISS's own 40 needs over twice the ef for recall@10 0.95 of a million hard vectors."""
OPQ_ROUNDS, OPQ_VECTORS = 8, 20_000
"""FAISS's own 50 rounds over 65,536 vectors take minutes and gained nothing that a tuned nprobe does not."""
DRIFT_LIMIT = 0.02
"""A template is used again while vectors lie at most this much farther (cosine) from their coarse centroid than at its training."""
DRIFT_SAMPLE = 20_000


@dataclass(frozen=True)
class Template(Record):
    """A trained, empty index that every shard starts from; `file` is its URI, empty for families without training.

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
    collection: str = ""
    """The collection of another engine that takes the vectors of all shards."""

    @property
    def collection_parts(self) -> tuple[str, ...]:
        """What a collection adds to the identity of what is built."""
        return (self.family, self.collection) if self.collection else ()


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
    choice = choose_family(need, config.family, config.engine)
    family = choice.family
    for name, why in choice.reasons.items():
        log.info("family %s: %s", name, why)
    nlist = list_count(rows)
    made = Template(
        family.name, family.factory(dim, nlist), dim, config.shards, rows, vectors_uri=vectors_uri, families=choice.reasons
    )
    if not family.trained:
        return replace(made, reason=f"{family.name} needs no training")
    if previous is not None:
        refused = _refuse_reuse(previous, made, config)
        if not refused:
            return replace(
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
    return replace(made, file=str(path), sha256=describe(path, path.name).sha256, fit=fit, reason=why)


def training_vectors(family: Family, rows: int, config: IndexConfig) -> int:
    """Number of training vectors: the configured sample, or the minimum that the number of lists requires.

    A sample is drawn row by row and comes out smaller or larger by a few standard deviations, so six of them are asked for more.
    Lists grow with the square root of the rows and the sample with them: at 512-d it holds 0.7 GB from 10.7M rows on and 1.3 GB
    from 43M, and as much again while it is put together.
    """
    least = least_training(family, rows)
    return max(config.sample, least + math.ceil(6 * least**0.5))


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
    lists = ivf_view(index)
    if isinstance(lists, faiss.IndexIVFPQ):
        lists.do_polysemous_training = False  # orders codes for a filter that no search here uses, in half of the training's time
    return made


def empty_index(template: Template) -> Any:
    """The empty index of a template, to add vectors to. Raises VitrineError when its file is missing or damaged."""
    import faiss

    if not template.file:
        return make_index(template.dim, template.factory)
    whole = storage.read_verified(template.file, template.sha256, "run the step that trained the template again")
    return faiss.deserialize_index(np.frombuffer(whole, np.uint8))


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
    if not storage.exists(previous.file):
        return "its file is gone"
    sample = sample_vectors(required.vectors_uri, required.shards, DRIFT_SAMPLE, config.seed)
    fit = coarse_fit(empty_index(previous), sample)
    if fit < previous.fit - DRIFT_LIMIT:
        return f"the mean cosine to the centroids fell from {previous.fit:.3f} to {fit:.3f} (limit {DRIFT_LIMIT})"
    return ""
