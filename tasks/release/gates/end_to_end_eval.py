"""End-to-end evaluation through the serving code: photo bytes -> pixels -> query vector -> index -> ranker."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.encoder import EncoderFolder
from serving.contract.preprocess import ImageRejected, decode
from serving.contract.provenance import QuerySet
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.contract.segments import IMAGES
from serving.index.searcher import Searcher
from serving.ranking.features import Features
from serving.versions.release import Release
from tasks.catalog.snapshot import Snapshot
from tasks.embed.images import read_image
from tasks.progress import Progress
from tasks.queries.query_words import query_set
from tasks.queries.stand_in import held_out_photos
from tasks.queries.view_store import is_view, view_table

log = logging.getLogger(__name__)

MAX_PHOTOS = 2000
TOP = 20


@dataclass(frozen=True)
class Query:
    """A held-out photo, or a view that stands in for one, and its product; `image_uri` is the picture that a view is made of."""

    photo_uri: str
    product_id: str
    image_uri: str = ""

    @property
    def synthetic(self) -> bool:
        return is_view(self.photo_uri)


@dataclass(frozen=True)
class EndToEndResult:
    """Per photo, in order: the rank of its product in the answer (0 best, -1 absent) and the latency in milliseconds.

    `vectors` (n, d) float32 are the photos' query vectors; `unreadable` photos are left out.
    """

    queries: list[Query]
    ranks: np.ndarray
    ms: np.ndarray
    vectors: np.ndarray
    answers: list[list[str]]
    unreadable: int


def held_out_queries(snapshot: Snapshot, limit: int = MAX_PHOTOS, deleted: Collection[str] = ()) -> list[Query]:
    """Held-out photos (split val, else test) and the views that stand in for others; evenly thinned to `limit`. Empty without any.

    Queries of `deleted` products have no right answer any more: they are left out, and how many is logged.
    """
    columns = ["photo_uri", "product_id"]
    photos, views = held_out_photos(snapshot.uri).select(columns), view_table(snapshot.uri)
    photos = photos.append_column("image_uri", pa.array([""] * len(photos), pa.string()))
    chosen = pa.concat_tables([photos, views.select(photos.column_names)])
    orphans = pc.is_in(chosen["product_id"], pa.array(sorted(deleted), pa.string()))
    if left_out := pc.sum(orphans).as_py():
        log.info("%d of %d queries show products deleted since snapshot %s: left out", left_out, len(chosen), snapshot.id)
        chosen = chosen.filter(pc.invert(orphans))
    if len(chosen) > limit:
        chosen = chosen.take(pa.array(np.linspace(0, len(chosen) - 1, limit).astype(int)))
    rows = chosen.to_pylist()
    return [Query(r["photo_uri"], r["product_id"], r["image_uri"]) for r in rows]


def query_set_of(queries: list[Query]) -> QuerySet | None:
    """How many of them are photos, and how many synthetic; None for none."""
    return query_set(q.photo_uri for q in queries)


def of_today(queries: list[Query], snapshot: Snapshot, searcher: Searcher) -> list[Query]:
    """The queries that the version in `searcher` may answer: without those of products that have no picture any more, which no photo
    finds, and without views of pictures that are not their product's any more.

    A view goes by its product's main picture; a product that shows a further one, as its main one cannot be used, keeps its view.
    """
    if bare := _without_picture(searcher, {q.product_id for q in queries}):
        log.info("%d products of queries lost their picture since snapshot %s: left out", len(bare), snapshot.id)
        queries = [q for q in queries if q.product_id not in bare]
    views = view_table(snapshot.uri)
    if not len(views):
        return queries
    made_of = dict(zip(views["photo_uri"].to_pylist(), views["image_uri"].to_pylist(), strict=True))
    shown, further = _shown_pictures(searcher.features, searcher.live(), {q.product_id for q in queries if q.synthetic})
    kept = [q for q in queries if not q.synthetic or (q.product_id, made_of[q.photo_uri]) in shown or q.product_id in further]
    if len(kept) < len(queries):
        log.info("%d views are of pictures that changed since snapshot %s: left out", len(queries) - len(kept), snapshot.id)
    return kept


def _without_picture(searcher: Searcher, asked: set[str]) -> set[str]:
    """Those of the products `asked` that are live in the version by their title alone."""
    if not searcher.live_titles:
        return set()
    bare = searcher.live() & ~searcher.depicted()
    ids = searcher.features.table["product_id"].filter(pa.array(bare))
    return set(ids.filter(pc.is_in(ids, pa.array(sorted(asked), pa.string()))).to_pylist())


def _shown_pictures(features: Features, live: np.ndarray, asked: set[str]) -> tuple[set[tuple[str, str]], set[str]]:
    """What the live rows (n,) bool of the products `asked` show: (product_id, picture), and the products that show a further picture."""
    columns = ["product_id", "image_uri", *([IMAGES] if features.has_pictures else [])]
    rows = features.table.select(columns).filter(pa.array(live))
    found = rows.filter(pc.is_in(rows["product_id"], pa.array(sorted(asked), pa.string()))).to_pylist()
    shown = {(row["product_id"], row["image_uri"]) for row in found}
    return shown, {row["product_id"] for row in found if row["image_uri"] in (row.get(IMAGES) or ())}


def held_by(queries: list[Query], searcher: Searcher) -> list[Query]:
    """The queries without views of products that the version in `searcher` lacks: such a one it can only miss."""
    asked = pa.array(sorted({q.product_id for q in queries if q.synthetic}), pa.string())
    ids = searcher.features.table["product_id"].filter(pa.array(searcher.live()))
    held = set(ids.filter(pc.is_in(ids, asked)).to_pylist())
    return [q for q in queries if not q.synthetic or q.product_id in held]


def read_photos(snapshot: Snapshot, queries: list[Query]) -> list[bytes]:
    """Bytes of the readable photos."""
    found = []
    for query in queries:
        try:
            found.append(read_image(query.photo_uri, snapshot.image_root))
        except ImageRejected:
            continue
    return found


def measure(release: Release, snapshot: Snapshot, queries: list[Query], name: str = "ask the index") -> EndToEndResult:
    """Searches every photo sequentially."""
    kept, ranks, ms, vectors, answers = [], [], [], [], []
    features = release.searcher.features
    release.warm()
    with Progress(name, len(queries), "photos") as progress:
        for query in queries:
            progress.add()
            try:
                data = read_image(query.photo_uri, snapshot.image_root)
                began = time.perf_counter()
                asked = release.encode_photo(data)
            except ImageRejected:
                continue
            ranked = release.answer(asked, TOP)
            ms.append(1e3 * (time.perf_counter() - began))
            rows = features.take(ranked.rows, ["product_id", "image_uri"])
            ids = [r["product_id"] for r in rows]
            ranks.append(rank_of(query, rows))
            kept.append(query)
            vectors.append(asked.vector)
            answers.append(ids)
    stacked = np.stack(vectors) if vectors else np.zeros((0, release.searcher.dim), np.float32)
    return EndToEndResult(kept, np.array(ranks, np.int64), np.array(ms), stacked, answers, len(queries) - len(kept))


def rank_of(query: Query, rows: Sequence[Mapping[str, Any]]) -> int:
    """Where a query's product is among answers (0 best, -1 absent); of a view, any product with the picture that it is made of."""
    right = (
        n
        for n, r in enumerate(rows)
        if r["product_id"] == query.product_id or (query.image_uri and r["image_uri"] == query.image_uri)
    )
    return next(right, -1)


def query_vectors(
    encoders: EncoderFolder, name: str, snapshot: Snapshot, queries: list[Query], runtime: Runtime = ONNXRUNTIME
) -> np.ndarray:
    """Query vectors (n, d) float32 of the readable photos by the variant `name`, encoded one at a time as in serving."""
    encoder = encoders.open(name, runtime=runtime)
    vectors = []
    with Progress("encode photos", len(queries), "photos") as progress:
        for query in queries:
            progress.add()
            try:
                pixels = decode(read_image(query.photo_uri, snapshot.image_root), encoders.manifest.preprocess)
            except ImageRejected:
                continue
            vectors.append(encoder.encode(pixels[None])[0])
    return np.stack(vectors) if vectors else np.zeros((0, encoders.manifest.dim), np.float32)
