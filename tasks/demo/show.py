"""The demo's results: searches held-out photos on the running replica and compares recall with baselines."""

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from serving.contract.encoder import EncoderFolder
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks.catalog.changes.ledger import deleted_products, ledger_of
from tasks.catalog.snapshot import Snapshot, product_table, read_snapshot
from tasks.embed.images import read_image
from tasks.errors import VitrineError
from tasks.index.metrics import recall_at_k
from tasks.queries.query_words import describe
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.gates.end_to_end_eval import Query, held_out_queries, query_set_of
from tasks.settings import Settings
from tasks.worker_disk import CACHE

PHOTOS = 400
SHOWN = 8
READY_LIMIT_S = 120
BLOCK = 256
NAMES = {
    "colour_histogram": "colour histogram (8x8x8, Hellinger)",
    "untrained": "the encoder, untrained",
    "pretrained": "the pretrained encoder, as it is",
}
TRAINED = {"": "trained", "none": "pretrained", "fine-tuned": "fine-tuned", "interpolated": "fine-tuned, interpolated"}


@dataclass(frozen=True)
class Line:
    """A row of the recall table."""

    name: str
    recall_at_1: float
    recall_at_10: float


def show_answers(settings: Settings, console: Console) -> list[Line]:
    """Searches the replica and prints tables of answers and recall; returns the recall rows."""
    registry = Registry(settings.mlflow_uri, settings.home / CACHE, endpoint=settings.endpoint)
    live = registry.require_alias(INDEX_MODEL, "live")
    manifest = registry.index_manifest(live.version)
    url = settings.serving_urls[0]
    _wait_until_live(url, live.version)
    snapshot = read_snapshot(manifest.snapshot.uri)
    queries = held_out_queries(snapshot, PHOTOS, deleted_products(ledger_of(manifest, registry.file)))
    answers, times = _ask(url, snapshot, queries, console)
    if not answers:
        console.print(f"nothing to show: none of {len(queries)} held-out photos can be read, so recall is not measured here")
        return []
    right = right_products([q for q, _ in answers], snapshot)
    shown = list(zip(answers, right, strict=True))[:: max(len(answers) // SHOWN, 1)]
    console.print(_answer_table(shown[:SHOWN], snapshot))
    ranks = np.array([_rank([r["product_id"] for r in found], ids) for (_, found), ids in zip(answers, right, strict=True)])
    folder = registry.encoder_folder(manifest.encoder.version)
    with console.status("measuring baselines and towers on the same photos"):
        compared = _compared(folder, snapshot, [q for q, _ in answers], right)
    lines = [Line(f"Vitrine over HTTP, index version {live.version}", recall_at_k(ranks, 1), recall_at_k(ranks, 10)), *compared]
    asked = query_set_of([q for q, _ in answers])
    console.print(_recall_table(lines, describe(asked), snapshot.rows))
    if asked and asked.synthetic:
        console.print(
            "synthetic queries: views of product pictures in other surroundings, as few labelled photos are held out; shoppers' photos are "
            "harder (docs/operate/catalogue.md)"
        )
    p50, p99 = np.percentile(times, [50, 99])
    console.print(f"answers took {p50:.0f} ms (p50) and {p99:.0f} ms (p99) over HTTP, one at a time")
    return lines


def _wait_until_live(url: str, version: str) -> None:
    end = time.monotonic() + READY_LIMIT_S
    said = "no answer"
    while time.monotonic() < end:
        try:
            state = httpx.get(f"{url}/v1/version", timeout=5, trust_env=False).json()
            if state["live"] and state["live"]["version"] == version:
                return
            said = f"it serves {state['live']['version'] if state['live'] else 'nothing'}; slots: {state['slots']}"
        except httpx.HTTPError as error:
            said = type(error).__name__
        time.sleep(0.5)
    raise VitrineError(f"{url} does not serve index version {version} after {READY_LIMIT_S} s: {said}")


def _ask(
    url: str, snapshot: Snapshot, queries: list[Query], console: Console
) -> tuple[list[tuple[Query, list[dict]]], list[float]]:
    answers, times = [], []
    with httpx.Client(timeout=30, trust_env=False) as client, Bar(console=console, transient=True) as bar:
        task = bar.add_task("sending queries", total=len(queries))
        for query in queries:
            bar.advance(task)
            try:
                data = read_image(query.photo_uri, snapshot.image_root)
            except ImageRejected:
                continue
            began = time.perf_counter()
            answer = client.post(f"{url}/v1/search", files={"image": ("photo.jpg", data)}, data={"k": "10"})
            times.append(1e3 * (time.perf_counter() - began))
            if answer.status_code != 200:
                raise VitrineError(f"{query.photo_uri}: the replica answered {answer.status_code}: {answer.text[:200]}")
            answers.append((query, answer.json()["results"]))
    return answers, times


def right_products(queries: list[Query], snapshot: Snapshot) -> list[frozenset[str]]:
    """The products that each query shows: its own, and of a view all with the picture that it is made of."""
    with_picture: dict[str, set[str]] = {q.image_uri: set() for q in queries if q.image_uri}
    for row in product_table(snapshot.uri, ["product_id", "image_uri"]).to_pylist() if with_picture else []:
        if row["image_uri"] in with_picture:
            with_picture[row["image_uri"]].add(row["product_id"])
    return [frozenset({q.product_id} | with_picture.get(q.image_uri, set())) for q in queries]


def _rank(ids: Sequence[str], right: Container[str]) -> int:
    """The place of the first of the `right` products among `ids` (0 best, -1 absent)."""
    return next((n for n, product_id in enumerate(ids) if product_id in right), -1)


def _compared(folder: Path, snapshot: Snapshot, queries: list[Query], right: list[frozenset[str]]) -> list[Line]:
    """Recall of the baselines, and of each of the encoder's towers by exact search, on the same photos and products."""
    from tasks.encoder.evaluate.baselines import baselines_of
    from tasks.encoder.evaluate.vectors import encode

    version = EncoderFolder(folder)
    manifest = version.manifest
    products = product_table(snapshot.uri, ["product_id", "image_uri"])
    uris, ids = products["image_uri"].to_pylist(), np.array(products["product_id"].to_pylist())
    photos = [q.photo_uri for q in queries]
    lines = []
    for baseline in baselines_of(manifest):
        xb, kept = _encoded(uris, snapshot, baseline.spec, baseline.encode)
        xq, asked = _encoded(photos, snapshot, baseline.spec, baseline.encode)
        lines.append(_line(NAMES[baseline.name], xq, [right[n] for n in asked], xb, ids[kept]))
    document = version.open(manifest.document, threads=2)
    xb, kept = _encoded(uris, snapshot, manifest.preprocess, partial(encode, document))
    for name in dict.fromkeys(
        (manifest.document, *(n for n in manifest.names() if n.startswith("student.fp32")), manifest.query)
    ):
        xq, asked = _encoded(photos, snapshot, manifest.preprocess, partial(encode, version.open(name, threads=2)))
        lines.append(
            _line(
                f"{TRAINED[manifest.trained or '']} encoder, {name}, exact search", xq, [right[n] for n in asked], xb, ids[kept]
            )
        )
    return lines


def _line(name: str, xq: np.ndarray, right: list[frozenset[str]], xb: np.ndarray, ids: np.ndarray) -> Line:
    """Recall of the photos `xq` (nq, d), each of its `right` products, among `xb` (nb, d) of the products `ids` (nb,)."""
    order = np.argsort(-(xq @ xb.T), axis=1, kind="stable")[:, :10]
    ranks = np.array([_rank(ids[best].tolist(), wanted) for best, wanted in zip(order, right, strict=True)])
    return Line(name, recall_at_k(ranks, 1), recall_at_k(ranks, 10))


def _encoded(
    uris: list[str], snapshot: Snapshot, spec: PreprocessSpec, encode: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, d) of the readable pictures, and their indices, in bounded memory."""
    vectors, pixels, kept = [], [], []
    for place, uri in enumerate(uris):
        try:
            pixels.append(decode(read_image(uri, snapshot.image_root), spec))
            kept.append(place)
        except ImageRejected:
            continue
        if len(pixels) == BLOCK:
            vectors.append(encode(np.stack(pixels)))
            pixels = []
    if pixels:
        vectors.append(encode(np.stack(pixels)))
    return np.concatenate(vectors), np.array(kept)


def _answer_table(answers: list[tuple[tuple[Query, list[dict]], frozenset[str]]], snapshot: Snapshot) -> Table:
    rows = product_table(snapshot.uri, ["product_id", "title"]).to_pylist()
    titles = {r["product_id"]: r["title"] for r in rows}
    table = Table(title="what was asked, and what was found", title_justify="left", show_edge=False)
    for column in ("the query shows", "best match", "similarity", "right product at"):
        table.add_column(column, justify="right" if column in ("similarity", "right product at") else "left")
    for (query, found), right in answers:
        rank = _rank([r["product_id"] for r in found], right)
        title, similarity = (str(found[0]["title"]), float(found[0]["similarity"])) if found else ("nothing", 0.0)
        place = f"[green]{rank + 1}[/]" if rank >= 0 else "[red]not in 10[/]"
        table.add_row(titles[query.product_id], title, f"{similarity:.3f}", place)
    return table


def _recall_table(lines: list[Line], asked: str, products: int) -> Table:
    title = f"recall on {asked} against {products} products"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("search")
    table.add_column("Recall@1", justify="right")
    table.add_column("Recall@10", justify="right")
    best = max(lines, key=lambda line: line.recall_at_10)
    for line in lines:
        style = "bold" if line is best else ""
        table.add_row(line.name, f"{line.recall_at_1:.3f}", f"{line.recall_at_10:.3f}", style=style)
    return table
