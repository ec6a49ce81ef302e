"""What an encoder version must show before it may become champion: named checks from its report and the champion's."""

from dataclasses import dataclass

import numpy as np

from serving.contract.manifest import Gate
from tasks.encoder.evaluate import HISTOGRAM, UNTRAINED, EncoderReport, PairReport
from tasks.metrics import paired_bootstrap


@dataclass(frozen=True)
class EncoderPolicy:
    """The thresholds; shares of 1 unless named otherwise."""

    student_share: float = 0.95
    """Of the teacher's Recall@10 that the student's queries keep against the teacher's documents."""
    int8_share: float = 0.99
    """Of fp32's Recall@10 that int8 keeps, when the version ships int8."""
    champion_margin: float = 0.02
    """By how much Recall@10 may lie below the champion's on the same photos."""
    slice_margin: float = 0.10
    """The same for each category with at least `slice_photos` photos."""
    slice_photos: int = 30
    parity: float = 1e-4
    smaller: float = 3.9
    """How many times fewer parameters the student has than the teacher."""


def encoder_gates(report: EncoderReport, champion: EncoderReport | None, policy: EncoderPolicy) -> tuple[Gate, ...]:
    """The table of checks. `champion` is the champion's report on the same snapshot, None when there is no champion."""
    ours = _required(report, report.query)
    gates = [
        *_against_baselines(report, ours),
        *_between_towers(report, policy),
        *_of_export(report, policy),
    ]
    if champion is not None:
        gates += _against_champion(report, champion, policy)
    return tuple(gates)


def _against_baselines(report: EncoderReport, ours: PairReport) -> list[Gate]:
    gates = []
    for baseline in (HISTOGRAM, UNTRAINED):
        theirs = report.pair(baseline)
        for figure in ("recall_at_1", "recall_at_10"):
            if theirs is not None:
                value, least = ours.recall[figure].value, theirs.recall[figure].value
                gates.append(_gate(f"beats_{baseline}_{figure}", value, least, value > least, f"{figure} of photos, more than"))
    return gates


def _between_towers(report: EncoderReport, policy: EncoderPolicy) -> list[Gate]:
    teacher, student = _required(report, "teacher.fp32"), _required(report, "student.fp32")
    gates = [
        _share("student_recall", student, teacher, policy.student_share, "the student's Recall@10 as a share of the teacher's")
    ]
    int8 = report.pair("student.int8")
    if int8 is not None:
        gates.append(_share("int8_recall", int8, student, policy.int8_share, "int8's Recall@10 as a share of fp32's"))
    return gates


def _of_export(report: EncoderReport, policy: EncoderPolicy) -> list[Gate]:
    found = [v for k, v in report.metrics.items() if k.endswith(".parity_max_difference")]
    worst = max(found, default=float("inf"))
    sizes = report.metrics.get("teacher.parameters", 0.0), report.metrics.get("student.parameters", float("inf"))
    ratio = sizes[0] / sizes[1]
    return [
        _gate("parity", worst, policy.parity, worst <= policy.parity, "largest difference of ONNX from PyTorch, at most"),
        _gate(
            "student_size", ratio, policy.smaller, ratio >= policy.smaller, "times fewer parameters than the teacher, at least"
        ),
    ]


def _against_champion(report: EncoderReport, champion: EncoderReport, policy: EncoderPolicy) -> list[Gate]:
    """Paired on the photos both were measured on; photos only one of them has do not count."""
    ours, theirs = _hits(report), _hits(champion)
    common = [photo for photo in report.photos if photo in theirs]
    if not common:
        reason = "the champion was measured on none of these photos; evaluate it on this snapshot"
        return [Gate(name="champion_recall", value=0.0, threshold=0.0, passed=False, reason=reason)]
    a, b = np.asarray([ours[p] for p in common]), np.asarray([theirs[p] for p in common])
    difference = paired_bootstrap(a, b)
    what = (
        f"Recall@10 less the champion's on {len(common)} photos (95 %: {difference.low:+.3f} to {difference.high:+.3f}), at least"
    )
    gates = [
        _gate("champion_recall", difference.value, -policy.champion_margin, difference.value >= -policy.champion_margin, what)
    ]
    category = dict(zip(report.photos, report.categories, strict=True))
    named = np.asarray([category[p] for p in common])
    worst = _worst_slice(a - b, named, policy.slice_photos)
    if worst is not None:
        name, value = worst
        passed = value >= -policy.slice_margin
        gates.append(
            _gate("champion_slices", value, -policy.slice_margin, passed, f"the same in the worst category, {name}, at least")
        )
    return gates


def _worst_slice(difference: np.ndarray, categories: np.ndarray, least: int) -> tuple[str, float] | None:
    means = {str(c): float(difference[categories == c].mean()) for c in np.unique(categories) if (categories == c).sum() >= least}
    return min(means.items(), key=lambda item: item[1]) if means else None


def _hits(report: EncoderReport) -> dict[str, float]:
    """Per photo, whether the version as it would serve finds the product among the first ten."""
    pair = _required(report, report.query)
    return {photo: float(rank <= 10) for photo, rank in zip(report.photos, pair.ranks, strict=True)}


def _required(report: EncoderReport, query: str) -> PairReport:
    found = report.pair(query)
    if found is None:
        raise ValueError(f"the report of {report.encoder} has no pair {query} on {report.document}")
    return found


def _share(name: str, ours: PairReport, theirs: PairReport, least: float, what: str) -> Gate:
    value, whole = ours.recall["recall_at_10"].value, theirs.recall["recall_at_10"].value
    share = value / whole if whole else 0.0
    return _gate(name, share, least, share >= least, f"{what}, at least")


def _gate(name: str, value: float, threshold: float, passed: bool, what: str) -> Gate:
    return Gate(
        name=name,
        value=float(value),
        threshold=float(threshold),
        passed=bool(passed),
        reason=f"{what} {threshold:.4g}: {value:.4g}",
    )
