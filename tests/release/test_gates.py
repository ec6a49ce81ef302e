"""The table of gates, and the decision it leads to."""

import dataclasses

import pytest

from serving.contract.manifest import Counts
from tasks.release.gates import Measured, Policy, decide, index_gates

GOOD = Measured(
    photos=200, recall_at_1=0.5, recall_at_10=0.9, exact_recall_at_10=1.0, p50_ms=5, p99_ms=20,
    counts=Counts(catalogue=100, embedded=99, quarantined=1, indexed=99, servable=99),
)  # fmt: skip


def counts(**changes: int) -> Counts:
    return GOOD.counts.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"exact_recall_at_10": 0.94}, {"exact_recall"}),
        ({"recall_at_10": 0.885}, set()),
        ({"recall_at_10": 0.87}, {"photo_recall"}),
        ({"p99_ms": 250.0}, {"p99_ms"}),
        ({"counts": counts(embedded=98)}, {"reconciled"}),
        ({"counts": counts(servable=98)}, {"reconciled"}),
        ({"gap": ("p7",)}, {"reconciled"}),
        ({"counts": counts(embedded=90, quarantined=10, servable=90)}, {"quarantined"}),
        ({"counts": counts(catalogue=0, embedded=0, quarantined=0, servable=0)}, {"servable"}),
    ],
)
def test_each_gate_stops_what_it_is_there_for(change: dict, failed: set[str]) -> None:
    candidate = dataclasses.replace(GOOD, **change)
    gates = index_gates(candidate, GOOD, Policy())
    assert {g.name for g in gates if not g.passed} == failed
    decision = decide(gates)
    assert decision.passed is (not failed)
    for name in failed:
        assert name in decision.summary


def test_the_first_version_needs_no_live_one_and_a_gap_is_named() -> None:
    assert decide(index_gates(GOOD, None, Policy())).passed
    assert "p7" in decide(index_gates(dataclasses.replace(GOOD, gap=("p7",)), None, Policy())).summary
