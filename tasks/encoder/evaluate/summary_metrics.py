"""The few figures of an encoder's evaluation that a person compares versions by; all others are in report.json and gates.json."""

from collections.abc import Sequence

from serving.contract.manifest import EncoderManifest, Gate
from tasks.encoder.evaluate.evaluate import EncoderReport, PairReport, Recall
from tasks.encoder.evaluate.speedup import FASTER
from tasks.queries.query_words import kind_name

TEACHER = "teacher.fp32"


def headline_metrics(report: EncoderReport, gates: Sequence[Gate]) -> dict[str, float]:
    """Metrics for MLflow, by names that say what was asked; what was not measured is absent."""
    found = {"gates_failed": float(sum(not g.passed for g in gates))}
    if FASTER in report.metrics:
        found["times_faster_than_teacher"] = report.metrics[FASTER]
    for name, pair in _pairs(report).items():
        found[f"recall_at_10{name}"] = pair.recall["recall_at_10"].value
        if not name:
            found |= {"recall_at_1": pair.recall["recall_at_1"].value, "mrr": pair.mrr.value}
    return found


def headline_figures(manifest: EncoderManifest, report: EncoderReport) -> dict[str, str]:
    """The same in words, with 95 % intervals, for the version's page."""
    pairs, figures = _pairs(report), {}
    for name, pair in pairs.items():
        what = f"{_label(name, report)} ({len(pair.ranks):,})"
        if not name:
            figures[f"Recall@1 of {what}"] = _interval(pair.recall["recall_at_1"])
        figures[f"Recall@10 of {what}"] = _interval(pair.recall["recall_at_10"])
    if FASTER in report.metrics:
        figures["one picture, times as fast as the teacher"] = f"{report.metrics[FASTER]:.1f}"
    for tower in ("teacher", "student"):
        if (count := report.metrics.get(f"{tower}.parameters")) is not None:
            figures[f"parameters of the {tower}'s image tower"] = f"{count / 1e6:.2f}M"
    figures[f"query file, {manifest.query}"] = f"{manifest.variant(manifest.query).file.bytes / 1e6:.2f} MB"
    return figures


LABELS = {
    "": "held-out photos",
    "_unseen_products": "photos of products never trained on",
    "_teacher": "the teacher's own queries",
    "_titles": "titles as words",
}
"""By the end of the metric's name."""


def _label(name: str, report: EncoderReport) -> str:
    """The label of a metric; what was asked of views is not called photos."""
    if not name:
        return kind_name(report.queries)
    if name == "_unseen_products" and report.unseen_synthetic:
        return "queries of products never trained on"
    return LABELS[name]


def _pairs(report: EncoderReport) -> dict[str, PairReport]:
    """What was measured of the version as it serves, by the end of the metric's name."""
    text = next((p for p in report.pairs if p.asked == "titles"), None)
    found = {
        "": report.pair(report.query),
        "_unseen_products": report.pair(report.query, asked="unseen"),
        "_teacher": report.pair(TEACHER) if report.query != TEACHER else None,
        "_titles": text,
    }
    return {name: pair for name, pair in found.items() if pair is not None}


def _interval(figure: Recall) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
