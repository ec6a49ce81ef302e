"""The evaluation report: an HTML page with curves, recall by category and failures, charts as PNG, and the model card."""

import base64
import html
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from serving.contract.manifest import EncoderManifest, Gate, read_manifest
from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.data.photos import TrainingSet, read_training_set
from tasks.encoder.data.pixels import read_pixels
from tasks.encoder.evaluate.card import asked_of, card
from tasks.encoder.evaluate.evaluate import EncoderReport, PairReport, raw_results
from tasks.encoder.export.export import CURVES
from tasks.queries.query_words import describe

FIGURES = ("Recall@1", "Recall@5", "Recall@10", "MRR", "mAP")
FAILURES = 12
FAILURES_OF_A_PRODUCT = 2
"""So that one hard product does not fill the gallery."""
SHOWN = 5
THUMBNAIL = PreprocessSpec(size=112, fit="pad")
STYLE = """tr.served td{font-weight:600}th.n{text-align:right}td.n{white-space:nowrap}small{color:#666;font-weight:400}
body{font:15px system-ui;margin:2rem auto;padding:0 1.5rem;max-width:84rem;color:#222}table{border-collapse:collapse}
td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}td.n{text-align:right}
.bad{color:#a00}.ok{color:#070}img{display:block}figure{display:inline-block;margin:.2rem .4rem;width:112px;font-size:12px}"""


def write_report(
    folder: Path, report: EncoderReport, gates: tuple[Gate, ...], snapshot_uri: str, work: Path, target: Path
) -> Path:
    """Writes report.html, training.png (of what was trained here), recall.png, report.json, raw.npz and card.md into `target`.

    Returns the page's path.

    `work` is the folder that the evaluation was given: its raw results name what came back. The page holds its pictures, so
    that it can be sent as one file.
    """
    target.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder / "encoder.json", EncoderManifest)
    charts = {"recall.png": _recall_chart(report)}
    if (folder / CURVES).is_file():  # what was taken as it is has no curves
        charts = {"training.png": _training_chart(json.loads((folder / CURVES).read_text()))} | charts
    for name, data in charts.items():
        (target / name).write_bytes(data)
    (target / "report.json").write_text(report.model_dump_json(indent=1))
    raw = raw_results(work, manifest, report.content_sha256)
    shutil.copyfile(raw, target / "raw.npz")
    (target / "card.md").write_text(card(manifest, report, gates))
    training = read_training_set(snapshot_uri)
    parts = [
        f"<h1>Encoder {html.escape(report.encoder)}</h1>",
        f"<p>{describe(report.queries)} ({report.split}) against {report.products} products. "
        f"Documents by {report.document}, queries by {report.query}.{report.orphans and f' {report.orphans.capitalize()}.'}</p>",
        "<h2>Gates</h2>",
        _gate_table(gates),
        "<h2>Recall, with 95 % bootstrap intervals</h2>",
        _recall_table(report),
        _interpolation(manifest),
        *(f'<p><img src="{_uri(data, "png")}" alt="{name}"></p>' for name, data in charts.items()),
        f"<h2>Failures of {report.query}, the worst first</h2>",
        _gallery(report, training, raw),
    ]
    page = target / "report.html"
    body = "\n".join(parts)
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>Encoder {html.escape(report.encoder)}</title><style>{STYLE}</style>{body}"
    )
    return page


def _gate_table(gates: tuple[Gate, ...]) -> str:
    rows = "".join(
        f'<tr><td class="{"ok" if g.passed else "bad"}">{"passed" if g.passed else "failed"}</td>'
        f"<td>{html.escape(g.name)}</td><td>{html.escape(g.reason)}</td></tr>"
        for g in gates
    )
    return f"<table><tr><th>verdict<th>gate<th>measured</tr>{rows}</table>"


def _recall_table(report: EncoderReport) -> str:
    rows = []
    for pair in report.pairs:
        figures = "".join(
            f'<td class="n">{r.value:.3f} <small>{r.low:.3f}–{r.high:.3f}</small></td>'
            for r in (*pair.recall.values(), pair.mrr, pair.map)
        )
        served = (pair.query, pair.document) == (report.query, report.document)
        rows.append(
            f"<tr{' class=served' if served else ''}><td>{pair.query}<td>{asked_of(report, pair)}"
            f"<td>{pair.document}{figures}</tr>"
        )
    head = "<th>queries<th>asked<th>documents" + "".join(f"<th class=n>{n}" for n in FIGURES)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><p><small>In bold: the version as it serves.</small></p>"


def _interpolation(manifest: EncoderManifest) -> str:
    """What was tried between the pretrained weights and the trained ones, and chosen; empty where nothing was."""
    chosen = manifest.recipe.get("interpolation")
    if not chosen:
        return ""
    rows = "".join(
        f"<tr{' class=served' if t['share'] == chosen['share'] else ''}><td class=n>{t['share']:g}"
        + "".join(f"<td class=n>{t[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr"))
        + "</tr>"
        for t in chosen["tried"]
    )
    return (
        f"<h2>Interpolation with the pretrained weights, on {chosen['photos']} train photos that were not trained on</h2>"
        f"<table><tr><th class=n>share of the training<th class=n>Recall@1<th class=n>Recall@10<th class=n>MRR</tr>{rows}</table>"
        "<p><small>In bold: what was taken, by MRR. 0: the pretrained tower under the layers that were put on top of it.</small></p>"
    )


def _gallery(report: EncoderReport, training: TrainingSet, raw: Path) -> str:
    """Photos with the worst ranks: the photo, the results, and the expected product."""
    pair = _served(report)
    best = np.load(raw)[f"{pair.query}.on.{pair.document}.{pair.asked}.best"]
    right = dict(zip(training.held_out().uris, training.held_out().products.tolist(), strict=True))
    order = _worst(np.asarray(pair.ranks), np.asarray([right[photo] for photo in report.photos]))
    rows = []
    for i in order:
        photo = report.photos[i]
        wanted, came = right[photo], [int(p) for p in best[i][:SHOWN]]
        pictures = [(photo, "the photo"), (training.image_uris[wanted], f"should be: {training.titles[wanted]}")]
        pictures += [(training.image_uris[p], f"{n}. {training.titles[p]}") for n, p in enumerate(came, 1)]
        figures = "".join(
            f'<figure><img width=112 src="{_picture(uri, training.root)}"><figcaption>{html.escape(text)}</figcaption></figure>'
            for uri, text in pictures
        )
        rows.append(f"<p>rank {pair.ranks[i]} of {report.products}<br>{figures}</p>")
    return "".join(rows) or "<p>None: every photo found its product first.</p>"


def _worst(ranks: np.ndarray, products: np.ndarray) -> list[int]:
    """Photos whose product is not first, worst first; only a few per product."""
    shown: Counter[int] = Counter()
    order: list[int] = []
    for i in np.argsort(-ranks, kind="stable").tolist():
        if ranks[i] > 1 and shown[int(products[i])] < FAILURES_OF_A_PRODUCT:
            shown[int(products[i])] += 1
            order.append(i)
    return order[:FAILURES]


def _served(report: EncoderReport) -> PairReport:
    pair = report.pair(report.query)
    assert pair is not None, "every evaluation measures the version's own query encoder"
    return pair


def _picture(uri: str, root: str) -> str:
    pixels = next(read_pixels([uri], root, THUMBNAIL))
    if pixels is None:
        return ""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return _uri(data.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _training_chart(curves: dict[str, list[float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for place, (tower, loss) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        window = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        place.plot(loss, color="#bbb", linewidth=0.7)
        place.plot(np.arange(len(smooth)) + window // 2, smooth, color="#06c")
        place.set(title=f"{tower}: loss", xlabel="step")
    return _png(figure)


def _recall_chart(report: EncoderReport) -> bytes:
    from matplotlib.figure import Figure

    slices = _served(report).slices
    names = sorted(slices, key=lambda n: slices[n]["recall_at_10"]) or ["all"]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(names)), layout="constrained")
    place = figure.subplots()
    whole = {k: r.value for k, r in _served(report).recall.items()}
    for offset, figure_name in ((-0.2, "recall_at_1"), (0.2, "recall_at_10")):
        values = [slices.get(n, whole)[figure_name] for n in names]
        place.barh(np.arange(len(names)) + offset, values, height=0.38, label=figure_name.replace("recall_at_", "Recall@"))
    if slices:
        low, high = ([slices[n][f"recall_at_10_{end}"] for n in names] for end in ("low", "high"))
        place.hlines(np.arange(len(names)) + 0.2, low, high, color="#333", linewidth=1)
    labels = [f"{n} ({slices[n]['photos']:.0f} photos)" if n in slices else n for n in names]
    place.set(yticks=range(len(names)), yticklabels=labels, xlim=(0, 1), title=f"Recall of {report.query} by category")
    place.legend(loc="lower right")
    return _png(figure)


def _png(figure: object) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)  # type: ignore[arg-type]
    return data.getvalue()
