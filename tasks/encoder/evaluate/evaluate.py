"""Evaluates an encoder version on held-out photos through its exported files: retrieval of each photo's product among all."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from serving.contract.encoder import EncoderFolder
from serving.contract.files import FrozenModel, atomic_write
from serving.contract.manifest import EncoderManifest
from serving.contract.provenance import QuerySet
from serving.versions.text_encoder import TextEncoder
from tasks.encoder.data.photos import Photos, TrainingSet, read_training_set
from tasks.encoder.data.pixels import Decoding, pixel_blocks
from tasks.encoder.evaluate.baselines import Baseline, baselines_of
from tasks.encoder.evaluate.exact_search import PhotoResults, search_photos, search_titles, title_queries
from tasks.encoder.evaluate.retrieval_metrics import Interval, cluster_interval, interval
from tasks.encoder.evaluate.vectors import encode
from tasks.errors import TrainingError
from tasks.queries.query_words import query_set
from tasks.queries.view_store import is_view

KS = (1, 5, 10)
LEAST_SLICE = 10
"""Categories with fewer photos are not reported as slices: their figures are noise."""

Asked = Literal["photos", "unseen", "titles"]
Encode = Callable[[np.ndarray], np.ndarray]

log = logging.getLogger(__name__)


class Recall(FrozenModel):
    """A metric with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


class PairReport(FrozenModel):
    """Retrieval metrics of one query encoder against one document encoder.

    `asked`: held-out photos; photos of products that were never trained on (their interval draws whole products); or the
    catalogue's titles. `ranks[i]` is the rank (from 1) of the product of query i, and every figure follows from the ranks. Where
    a query has one right product, mean average precision and mean reciprocal rank are the same number.
    """

    query: str
    document: str
    asked: Asked = "photos"
    recall: dict[str, Recall]
    mrr: Recall
    map: Recall
    slices: dict[str, dict[str, float]]
    ranks: tuple[int, ...]


class EncoderReport(FrozenModel):
    """The evaluation of an encoder version on a snapshot's held-out photos and views; both are called `photos` here."""

    encoder: str
    query: str
    document: str
    content_sha256: str
    split: str
    products: int
    unseen_products: int = 0
    unseen_synthetic: int = 0
    """How many of the queries of unseen products are synthetic."""
    photos: tuple[str, ...]
    categories: tuple[str, ...]
    orphans: str = ""
    """Photos that the snapshot left out, in words; "" for none."""
    pairs: tuple[PairReport, ...]
    metrics: dict[str, float]
    towers: tuple[str, ...] = ("student", "teacher", "text")
    """The towers that the version has; reports of before are of versions with all three."""

    @property
    def queries(self) -> QuerySet | None:
        """How many of the `photos` are shoppers', and how many synthetic."""
        return query_set(self.photos)

    def has(self, tower: str) -> bool:
        """Whether the version has this tower."""
        return tower in self.towers

    def pair(self, query: str, document: str = "", asked: Asked = "photos") -> PairReport | None:
        """The metrics of this pair (default document: the version's own), or None when not measured."""
        wanted = document or self.document
        return next((p for p in self.pairs if (p.query, p.asked) == (query, asked) and p.document in (wanted, query)), None)

    def flat(self) -> dict[str, float]:
        """All metrics by unique name, for MLflow."""
        figures: dict[str, float] = {}
        for p in self.pairs:
            name = f"{p.query}.on.{p.document}" + ("" if p.asked == "photos" else f".{p.asked}")
            figures |= {f"{name}.{k}": r.value for k, r in p.recall.items()}
            figures |= {f"{name}.mrr": p.mrr.value, f"{name}.map": p.map.value}
        return figures


@dataclass(frozen=True)
class Pictures:
    """Uris and the name of their pixel cache."""

    uris: tuple[str, ...]
    name: str


def evaluate_encoder(
    folder: Path, snapshot_uri: str, work: Path, baselines: bool = True, decoding: Decoding | None = None
) -> EncoderReport:
    """Measures every query variant against the version's documents, each tower against itself, and the baselines.

    Then the version as it serves, and its teacher, on photos of products that were never trained on; and its text tower, if it has
    one, on the catalogue's titles. Raw results stay in a file (`raw_results`); photos that cannot be read are left out. Raises
    TrainingError when the snapshot has no held-out photos, ContractError when the folder is not whole.
    """
    opened = EncoderFolder(folder)
    manifest = opened.manifest
    training = read_training_set(snapshot_uri)
    photos, unseen = training.held_out(), training.unseen_queries()
    if not len(photos):
        also = training.orphans and f"; {training.orphans}"
        raise TrainingError(
            f"{snapshot_uri} has neither held-out photos nor views that stand in for them; recall needs rows with split=val in photos.csv, "
            f"or usable product pictures{also}"
        )
    names = [f"{t}.{v}" for t, variants in manifest.towers.items() if t != "text" for v in variants]
    documents = sorted({manifest.document, *(n for n in names if n.endswith(".fp32"))})
    encoders: dict[str, Encode] = {n: _onnx(opened, n) for n in names}
    see = _EvaluationImages(training, manifest, work, decoding or Decoding())
    xb, shown = see.vectors(Pictures(training.image_uris, "document"), {n: encoders[n] for n in documents})
    xq, good = see.vectors(Pictures(photos.uris, "query"), encoders)
    pictures = pa.array(training.image_uris, pa.string()).dictionary_encode().indices.fill_null(-1).to_numpy()
    found: dict[tuple[str, str, Asked], PhotoResults] = {}
    for query in xq:
        beside = manifest.document, f"{query.partition('.')[0]}.fp32"
        for document in dict.fromkeys(d for d in beside if d in xb):
            found[query, document, "photos"] = search_photos(
                xq[query], xb[document], shown, photos.products, good, pictures, _views(photos)
            )
    for baseline in baselines_of(manifest) if baselines else ():  # one after the other: their vectors are the longest
        found[baseline.name, baseline.name, "photos"] = search_photos(
            see.compared(Pictures(photos.uris, "query"), baseline), see.compared(Pictures(training.image_uris, "document"), baseline),
            shown, photos.products, good, pictures, _views(photos),
        )  # fmt: skip
    served = [n for n in dict.fromkeys(("teacher.fp32", manifest.query)) if n in encoders]
    xu, readable = see.vectors(Pictures(unseen.uris, "unseen"), {n: encoders[n] for n in served})
    for query in served if readable.any() else ():
        found[query, manifest.document, "unseen"] = search_photos(
            xu[query], xb[manifest.document], shown, unseen.products, readable, pictures, _views(unseen)
        )
    text = TextEncoder.open(opened, threads=2)
    if text is not None:
        titles, number = title_queries(training.titles, shown)
        tokens = np.asarray([t.ids for t in text.tokenizer.encode_batch(titles)], np.int64)
        found[text.encoder.name, manifest.document, "titles"] = search_titles(
            encode(text.encoder, tokens), xb[manifest.document], shown, number
        )
    raw = raw_results(work, manifest, training.content_sha256)
    _write_raw(raw, found, training, photos, good)
    categories = tuple(training.categories[p] for p in photos.products[good])
    return EncoderReport(
        encoder=manifest.name,
        query=manifest.query,
        document=manifest.document,
        content_sha256=training.content_sha256,
        split="val" if len(training.split("val")) else "test" if len(training.split("test")) else "views",
        products=len(training.product_ids),
        unseen_products=len(np.unique(unseen.products[readable])),
        unseen_synthetic=sum(is_view(uri) for uri, seen in zip(unseen.uris, readable, strict=True) if seen),
        photos=tuple(u for u, seen in zip(photos.uris, good, strict=True) if seen),
        categories=categories,
        orphans=training.orphans,
        pairs=pairs_of(raw, categories),
        metrics=dict(manifest.metrics),
        towers=tuple(sorted(manifest.towers)),
    )


def _views(queries: Photos) -> np.ndarray:
    """Which of the queries (n,) bool are views."""
    return np.asarray([is_view(uri) for uri in queries.uris], bool)


def raw_results(work: Path, manifest: EncoderManifest, content_sha256: str) -> Path:
    """Path of an evaluation's raw results, an .npz.

    `product_ids` (nb,) and `photos` (nq,) name the rows; per "query.on.document.asked" lie `ranks` (nq,) int64, `precision`
    (nq,), `products` (nq,) the right rows, `best` (nq, 10) the rows that came back, and their `similarity` (nq, 10).
    """
    return work / "raw" / f"{manifest.golden.sha256[:12]}-{content_sha256[:12]}.npz"


def pairs_of(raw: Path, categories: tuple[str, ...]) -> tuple[PairReport, ...]:
    """Metrics of every pair in a file of raw results; `categories` are those of its held-out photos."""
    with np.load(raw) as stored:
        keys = [k.removesuffix(".ranks") for k in stored.files if k.endswith(".ranks")]
        return tuple(_figures(key, {n: stored[f"{key}.{n}"] for n in RAW}, np.asarray(categories)) for key in keys)


RAW = ("ranks", "precision", "products", "best", "similarity")


def _write_raw(
    path: Path, results: dict[tuple[str, str, Asked], PhotoResults], training: TrainingSet, photos: Photos, good: np.ndarray
) -> None:
    arrays: dict[str, Any] = {"product_ids": np.asarray(training.product_ids), "photos": np.asarray(photos.uris)[good]}
    for (query, document, asked), result in results.items():
        arrays |= {f"{query}.on.{document}.{asked}.{name}": getattr(result, name) for name in RAW}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def _figures(key: str, raw: dict[str, np.ndarray], categories: np.ndarray) -> PairReport:
    names, _, asked = key.rpartition(".")
    query, _, document = names.partition(".on.")
    rank = raw["ranks"]

    def figure(values: np.ndarray) -> Recall:
        found: Interval = cluster_interval(values, raw["products"]) if asked == "unseen" else interval(values)
        return Recall(value=found.value, low=found.low, high=found.high)

    return PairReport(
        query=query,
        document=document,
        asked=asked,  # type: ignore[arg-type]  # pydantic checks that it is one of the three
        recall={f"recall_at_{k}": figure(rank <= k) for k in KS},
        mrr=figure(1.0 / rank),
        map=figure(raw["precision"]),
        slices=_slices(rank, categories) if asked == "photos" else {},
        ranks=tuple(int(r) for r in rank),
    )


def _slices(rank: np.ndarray, categories: np.ndarray) -> dict[str, dict[str, float]]:
    result = {}
    for name in np.unique(categories):
        part = rank[categories == name]
        if name and len(part) >= LEAST_SLICE:
            found = interval(part <= 10)
            result[str(name)] = {"photos": float(len(part))} | {f"recall_at_{k}": float((part <= k).mean()) for k in KS}
            result[str(name)] |= {"recall_at_10_low": found.low, "recall_at_10_high": found.high}
    return result


def _onnx(opened: EncoderFolder, name: str) -> Encode:
    session = opened.open(name, threads=2)
    return lambda pixels: encode(session, pixels)


@dataclass(frozen=True)
class _EvaluationImages:
    """Pictures of one evaluation encoded block by block."""

    training: TrainingSet
    manifest: EncoderManifest
    work: Path
    decoding: Decoding

    def vectors(self, pictures: Pictures, encoders: dict[str, Encode]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Each encoder's vectors (n, d) float32, and the mask of readable pictures (n,) bool."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
        usable = [np.zeros(0, bool)]
        for pixels, good in self._blocks(pictures, self.manifest.preprocess):
            usable.append(good)
            for name, run in encoders.items():
                parts[name].append(run(pixels))
        return {name: np.concatenate(found) for name, found in parts.items() if found}, np.concatenate(usable)

    def compared(self, pictures: Pictures, baseline: Baseline) -> np.ndarray:
        """A baseline's vectors (n, d) float32 of all pictures; rows of unreadable ones mean nothing."""
        found, start = np.zeros((0, 0), np.float32), 0
        for pixels, _ in self._blocks(pictures, baseline.spec):
            vectors = baseline.encode(pixels)
            if not start:
                found = np.empty((len(pictures.uris), vectors.shape[1]), vectors.dtype)
            found[start : start + len(vectors)] = vectors
            start += len(vectors)
        return found

    def _blocks(self, pictures: Pictures, spec: Any) -> Any:
        return pixel_blocks(pictures.uris, self.training.root, spec, self.work / "pixels", pictures.name, self.decoding)
