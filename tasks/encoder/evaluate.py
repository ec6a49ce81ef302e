"""Judging an encoder version on held-out photos, through the files that will serve: each must find its product among all."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.encoder import EncoderFolder
from serving.contract.files import Frozen, written_whole
from serving.contract.manifest import EncoderManifest
from tasks.encoder.baselines import HISTOGRAM_SPEC, colour_histograms, encode_eager, untrained_encoder
from tasks.encoder.photos import Photos, Pixels, TrainingSet, cached_pixels, read_training_set
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.vectors import encode
from tasks.errors import TrainingError
from tasks.metrics import interval, mean_reciprocal_rank, ranks

HISTOGRAM, UNTRAINED = "colour_histogram", "untrained"
KS = (1, 5, 10)
LEAST_SLICE = 10
"""Categories with fewer photos are not reported as slices: their figures are noise."""

log = logging.getLogger(__name__)


class Recall(Frozen):
    """One figure with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


class PairReport(Frozen):
    """How one query encoder finds its products among one document encoder's vectors.

    `ranks[i]` is the rank (from 1) of photo i's product; everything else is computed from it. With one right product a
    query, `mrr` is the mean average precision too.
    """

    query: str
    document: str
    recall: dict[str, Recall]
    mrr: float
    slices: dict[str, dict[str, float]]
    ranks: tuple[int, ...]


class EncoderReport(Frozen):
    """The evaluation of one encoder version on one snapshot's held-out photos."""

    encoder: str
    query: str
    document: str
    content_sha256: str
    split: str
    products: int
    photos: tuple[str, ...]
    categories: tuple[str, ...]
    pairs: tuple[PairReport, ...]
    metrics: dict[str, float]

    def pair(self, query: str, document: str = "") -> PairReport | None:
        """The pair of these encoders (default document: the version's own), or None when it was not measured."""
        wanted = document or self.document
        return next((p for p in self.pairs if p.query == query and p.document in (wanted, query)), None)

    def flat(self) -> dict[str, float]:
        """Every figure under one name, for MLflow."""
        figures = {f"{p.query}.on.{p.document}.{name}": r.value for p in self.pairs for name, r in p.recall.items()}
        return figures | {f"{p.query}.on.{p.document}.mrr": p.mrr for p in self.pairs}


@dataclass(frozen=True)
class HeldOut:
    """The queries and the catalogue as pixels."""

    training: TrainingSet
    photos: Photos
    queries: Pixels
    documents: Pixels


def evaluate_encoder(folder: Path, snapshot_uri: str, work: Path, baselines: bool = True) -> EncoderReport:
    """Measures every query variant against the version's documents, the towers against themselves, and the baselines.

    Raw similarities stay in `work`/raw (an .npz of ranks and the ten best of each query); photos that cannot be read are left
    out. Raises TrainingError when the snapshot has no held-out photos, ContractError when the folder is not whole.
    """
    opened = EncoderFolder(folder)
    manifest = opened.manifest
    held_out = _held_out(snapshot_uri, manifest, work)
    image_names = [f"{t}.{v}" for t, variants in manifest.towers.items() if t != "text" for v in variants]
    xq = {name: encode(opened.open(name, threads=2), held_out.queries.array) for name in image_names}
    document_names = sorted({manifest.document, *(n for n in image_names if n.endswith(".fp32"))})
    xb = {name: encode(opened.open(name, threads=2), held_out.documents.array) for name in document_names}
    pairs = [(q, manifest.document, xq[q], xb[manifest.document]) for q in image_names]
    pairs += [(n, n, xq[n], xb[n]) for n in document_names if n != manifest.document]
    if baselines:
        pairs += _baselines(manifest, held_out, work)
    found: dict[str, Any] = {}
    reports = [_measure(q, d, queries @ documents.T, held_out, found) for q, d, queries, documents in pairs]
    metrics = dict(manifest.metrics)
    usable = held_out.queries.usable
    raw = raw_results(work, manifest, held_out.training.content_sha256)
    with written_whole(raw) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **found)
    return EncoderReport(
        encoder=manifest.name,
        query=manifest.query,
        document=manifest.document,
        content_sha256=held_out.training.content_sha256,
        split="val" if len(held_out.training.split("val")) else "test",
        products=len(held_out.training.product_ids),
        photos=tuple(u for u, good in zip(held_out.photos.uris, usable, strict=True) if good),
        categories=_categories(held_out),
        pairs=tuple(reports),
        metrics=metrics,
    )


def raw_results(work: Path, manifest: EncoderManifest, content_sha256: str) -> Path:
    """Where an evaluation leaves, per "query.on.document" pair, `ranks` (nq,), `best` product rows and `similarity` (nq, 10)."""
    return work / "raw" / f"{manifest.golden.sha256[:12]}-{content_sha256[:12]}.npz"


def _held_out(snapshot_uri: str, manifest: EncoderManifest, work: Path) -> HeldOut:
    training = read_training_set(snapshot_uri)
    photos = training.held_out()
    if not len(photos):
        raise TrainingError(f"{snapshot_uri} has no held-out photos; recall needs rows with split=val in photos.csv")
    load: Callable[..., Pixels] = cached_pixels
    queries = load(photos.uris, training.root, manifest.preprocess, work / "pixels", "query")
    documents = load(training.image_uris, training.root, manifest.preprocess, work / "pixels", "document")
    return HeldOut(training, photos, queries, documents)


def _categories(held_out: HeldOut) -> tuple[str, ...]:
    rows = held_out.photos.products[held_out.queries.usable]
    return tuple(held_out.training.categories[p] for p in rows)


def _baselines(manifest: EncoderManifest, held_out: HeldOut, work: Path) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    queries, documents = held_out.queries.array, held_out.documents.array
    training, photos = held_out.training, held_out.photos
    colours = [
        colour_histograms(cached_pixels(uris, training.root, HISTOGRAM_SPEC, work / "pixels", name).array)
        for uris, name in ((photos.uris, "query"), (training.image_uris, "document"))
    ]
    fresh = untrained_encoder(EncoderConfig.from_dict(manifest.recipe))
    return [
        (HISTOGRAM, HISTOGRAM, colours[0], colours[1]),
        (UNTRAINED, UNTRAINED, encode_eager(fresh, queries), encode_eager(fresh, documents)),
    ]


def _measure(query: str, document: str, similarity: np.ndarray, held_out: HeldOut, found: dict[str, Any]) -> PairReport:
    """Ranks and figures of one pair; adds the raw ranks and the ten best products of each query to `found`."""
    similarity[:, ~held_out.documents.usable] = -np.inf
    good = held_out.queries.usable
    similarity, products = similarity[good], held_out.photos.products[good]
    rank = ranks(similarity, products)
    k = min(10, similarity.shape[1])
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    key = f"{query}.on.{document}"
    found |= {f"{key}.ranks": rank, f"{key}.best": best, f"{key}.similarity": np.take_along_axis(similarity, best, axis=1)}
    figures = {f"recall_at_{k}": interval(rank <= k) for k in KS}
    return PairReport(
        query=query,
        document=document,
        recall={name: Recall(value=i.value, low=i.low, high=i.high) for name, i in figures.items()},
        mrr=mean_reciprocal_rank(rank),
        slices=_slices(rank, np.asarray(_categories(held_out))),
        ranks=tuple(int(r) for r in rank),
    )


def _slices(rank: np.ndarray, categories: np.ndarray) -> dict[str, dict[str, float]]:
    result = {}
    for name in np.unique(categories):
        part = rank[categories == name]
        if name and len(part) >= LEAST_SLICE:
            result[str(name)] = {"photos": float(len(part))} | {f"recall_at_{k}": float((part <= k).mean()) for k in KS}
    return result
