"""The table of gates, and the decision it leads to."""

import dataclasses

import pytest

from serving.contract.manifest import Counts
from tasks.release.gates.policy import Comparison, Measurements, Policy, Reconciliation, decide

PHOTOS = [f"photos/{n}.jpg" for n in range(200)]


def ranks(found: int, of: int = 200) -> dict[str, int]:
    """The first `found` photos find their product, the others do not."""
    return {photo: 0 if n < found else -1 for n, photo in enumerate(PHOTOS[:of])}


def categories(of: int = 200) -> dict[str, str]:
    return {photo: f"kind {n % 4}" for n, photo in enumerate(PHOTOS[:of])}


GOOD = Measurements(
    ranks=ranks(180), categories=categories(), exact_recall_at_10=1.0, p50_ms=5, p99_ms=20, qps=200, clients=4, memory_mb=100,
    counts=Counts(catalogue=100, embedded=99, quarantined=1, indexed=105, tombstoned=6, servable=99), rows=105, hidden=6,
    delta_share=0.05, age_h=1.0, compared=Comparison(50, "50 sampled real queries", 0.1, "3", "3", (), 100),
)  # fmt: skip


def counts(**changes: int) -> Counts:
    return GOOD.counts.model_copy(update=changes)


def compared(**changes: object) -> Comparison:
    assert GOOD.compared is not None
    return dataclasses.replace(GOOD.compared, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"exact_recall_at_10": 0.94}, {"exact_recall"}),
        ({"ranks": ranks(178)}, set()),
        ({"ranks": ranks(174)}, {"photo_recall"}),
        ({"ranks": ranks(150)}, {"photo_recall", "photo_slices"}),
        ({"ranks": GOOD.ranks | dict.fromkeys(PHOTOS[0:40:4], -1)}, {"photo_recall", "photo_slices"}),
        ({"p99_ms": 250.0}, {"p99_ms"}),
        ({"memory_mb": 9000.0}, {"memory_mb"}),
        ({"counts": counts(embedded=98)}, {"reconciled"}),
        ({"counts": counts(servable=98)}, {"reconciled"}),
        ({"rows": 104}, {"reconciled"}),
        ({"reconciled": Reconciliation(missing=("p7",))}, {"reconciled"}),
        ({"reconciled": Reconciliation(strange=("p8",))}, {"reconciled"}),
        ({"reconciled": Reconciliation(doubled=("p9",))}, {"reconciled"}),
        ({"counts": counts(embedded=90, quarantined=10, servable=90), "rows": 96, "hidden": 6}, {"quarantined", "reconciled"}),
        ({"counts": Counts(catalogue=0, embedded=0, quarantined=0, indexed=0, servable=0), "rows": 0, "hidden": 0}, {"servable"}),
        ({"compared": compared(lost=tuple(f"p{n}" for n in range(30)))}, {"lost"}),
        ({"compared": compared(churn=0.6)}, {"churn"}),
        ({"compared": compared(churn=0.6, encoder_now="4")}, set()),
        ({"compared": None}, set()),
        ({"delta_share": 0.31}, {"delta_share"}),
        ({"age_h": 49.0}, {"age_h"}),
    ],
)
def test_each_gate_stops_what_it_is_there_for(change: dict, failed: set[str]) -> None:
    decision = decide(dataclasses.replace(GOOD, **change), GOOD, Policy())
    assert {g.name for g in decision.gates if not g.passed} == failed
    assert decision.passed is (not failed)
    for name in failed:
        assert name in decision.summary


def test_what_may_be_chance_does_not_stop_a_version_with_few_photos() -> None:
    """One photo of thirty is 3 points and says nothing; a tenth of them is too much, chance or not."""
    few = dataclasses.replace(GOOD, ranks=ranks(27, 30), categories=categories(30))
    one_less = dataclasses.replace(few, ranks=ranks(26, 30))
    three_less = dataclasses.replace(few, ranks=ranks(24, 30))
    assert decide(one_less, few, Policy()).passed
    assert "photo_recall" in decide(three_less, few, Policy()).summary


def test_only_photos_that_both_were_asked_are_compared() -> None:
    live = dataclasses.replace(GOOD, ranks=dict.fromkeys(PHOTOS[100:], 0))
    candidate = dataclasses.replace(GOOD, ranks=dict.fromkeys(PHOTOS[:100], -1) | dict.fromkeys(PHOTOS[100:], 0))
    decision = decide(candidate, live, Policy())
    assert "the difference is +0.000 (95 %: +0.000 to +0.000)" in next(
        g.reason for g in decision.gates if g.name == "photo_recall"
    )
    assert decision.passed


def test_reasons_name_products_sums_and_the_interval() -> None:
    bad = dataclasses.replace(
        GOOD, ranks=ranks(150), counts=counts(servable=98), reconciled=Reconciliation(missing=tuple(f"p{n}" for n in range(7))),
        compared=compared(lost=("p1", "p2")),
    )  # fmt: skip
    reasons = {g.name: g.reason for g in decide(bad, GOOD, Policy()).gates}
    assert "embedded - servable = 1" in reasons["reconciled"]
    assert "missing: p0, p1, p2, p3, p4 and 2 more" in reasons["reconciled"]
    assert "(2 of 100): p1, p2" in reasons["lost"]
    assert "live has 0.900, the difference is -0.150 (95 %: -0.2" in reasons["photo_recall"]
    assert "p99 in ms while 4 ask at once (200 answers/s)" in reasons["p99_ms"]


def test_the_first_version_needs_no_live_one() -> None:
    first = dataclasses.replace(GOOD, compared=None)
    assert decide(first, None, Policy()).passed
    assert decide(dataclasses.replace(first, ranks={}), None, Policy()).passed
