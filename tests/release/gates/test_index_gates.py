"""The table of gates, and the decision it leads to."""

import dataclasses

import pytest

from serving.contract.counts import Counts
from tasks.release.gates.comparison import Comparison, Reconciliation
from tasks.release.gates.index_gates import Measurements, Policy, decide

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
        ({"counts": counts(pictures=300, quarantined_pictures=5), "pictures": 300}, set()),
        ({"counts": counts(pictures=300, quarantined_pictures=5), "pictures": 299}, {"reconciled"}),
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
    reason = next(g.reason for g in decision.gates if g.name == "photo_recall")
    assert "difference on the 100 photos measured on both +0.000 (95 % interval +0.000 to +0.000): no loss" in reason
    assert decision.passed


RECALL = "Recall@10 on 200 held-out photos"
SENTENCES: list[tuple[str, dict, str]] = [
    ("exact_recall", {}, "Recall@10 of the index against exact search over the same vectors: 1.000 (at least 0.950 is required)"),
    (
        "photo_recall", {"ranks": ranks(178)},
        f"{RECALL}: 0.890 (live version: 0.900); difference on the 200 photos measured on both -0.010 (95 % interval -0.025 to +0.000): "
        "a loss within the allowed 0.02",
    ),
    (
        "photo_recall", {"ranks": ranks(174)},
        f"{RECALL}: 0.870 (live version: 0.900); difference on the 200 photos measured on both -0.030 (95 % interval -0.055 to -0.005): "
        "a loss of more than 0.02, too clear to be chance",
    ),
    (
        "photo_slices", {"ranks": ranks(150)},
        "Recall@10 in the category that compares worst with the live version, 'kind 2' (50 photos): difference -0.160 (95 % interval "
        "-0.260 to -0.060): a loss of more than 0.10, too clear to be chance",
    ),
    ("p99_ms", {"p99_ms": 250.0}, "p99 of a photo search with 4 concurrent clients (200 searches/s): 250 ms (at most 200 ms is allowed)"),
    ("memory_mb", {"memory_mb": 9000.0}, "Memory of this version in a replica: 9000 MiB (at most 8192 MiB is allowed)"),
    ("reconciled", {}, "Every one of the catalogue's 100 products is searchable (99) or in quarantine (1)"),
    (
        "reconciled", {"counts": counts(quarantined_rows=7)},
        "Every one of the catalogue's 100 products is searchable (99) or in quarantine (1); 7 more rows of the snapshot's source cannot "
        "be used",
    ),
    (
        "reconciled", {"counts": counts(pictures=300, quarantined_pictures=5), "pictures": 300},
        "Every one of the catalogue's 100 products is searchable (99) or in quarantine (1); of their pictures 300 can be found and 5 are "
        "in quarantine",
    ),
    (
        "reconciled", {"counts": counts(pictures=300, quarantined_pictures=5), "pictures": 299},
        "1 mismatch between catalogue and index (none is allowed): the manifest counts 300 pictures of searchable products, but there are "
        "299",
    ),
    (
        "reconciled", {"counts": counts(embedded=98)},
        "2 mismatches between catalogue and index (none is allowed): 98 embedded and 1 quarantined products are not the catalogue's 100; "
        "98 products are embedded, but 99 are searchable",
    ),
    (
        "reconciled", {"rows": 104},
        "2 mismatches between catalogue and index (none is allowed): 104 index rows, of which 6 were replaced or deleted, are not 99 "
        "searchable products; the manifest counts 105 index rows, but there are 104",
    ),
    (
        "reconciled", {"reconciled": Reconciliation(missing=tuple(f"p{n}" for n in range(7)), strange=("q1",), doubled=("r1",))},
        "9 mismatches between catalogue and index (none is allowed): missing from the index: p0, p1, p2, p3, p4 and 2 more; "
        "in the index but not in the catalogue: q1; found twice, or found although in quarantine: r1",
    ),
    ("quarantined", {}, "Products without a usable picture, 1 of 100: 1.0% (at most 2.0% is allowed)"),
    ("servable", {}, "Searchable products: 99 (at least 1 is required)"),
    (
        "lost", {"compared": compared(lost=("p1", "p2"))},
        "Products of the live version that are gone, 2 of 100 (p1, p2): 2.0% (at most 10.0% is allowed)",
    ),
    ("churn", {}, "Results that differ from the live version's top 20, on 50 sampled real queries: 10.0% (at most 50.0% is allowed)"),
    (
        "churn", {"compared": compared(churn=0.6, encoder_now="4")},
        "Results that differ from the live version's top 20, on 50 sampled real queries: 60.0% (not limited, because the encoder changed "
        "from version 3 to 4)",
    ),
    ("delta_share", {}, "Part of the index added by updates since the last rebuild: 5.0% (at most 30.0% is allowed)"),
    ("age_h", {"age_h": 49.0}, "Age of the catalogue data: 49.0 h (at most 48.0 h is allowed)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "sentence"), SENTENCES)
def test_each_gate_says_what_was_measured_and_what_is_required(name: str, change: dict, sentence: str) -> None:
    gates = decide(dataclasses.replace(GOOD, **change), GOOD, Policy()).gates
    assert next(g.reason for g in gates if g.name == name) == sentence


def test_a_loss_that_may_be_chance_is_accepted_up_to_a_limit_and_says_so() -> None:
    few = dataclasses.replace(GOOD, ranks=ranks(27, 30), categories=categories(30))
    one_less, three_less = (dataclasses.replace(few, ranks=ranks(n, 30)) for n in (26, 24))
    reasons = [next(g.reason for g in decide(v, few, Policy()).gates if g.name == "photo_recall") for v in (one_less, three_less)]
    assert reasons[0].endswith("a loss of more than 0.02 that may be chance, so it is accepted")
    assert "chance" in reasons[1]
    first = next(
        g.reason for g in decide(dataclasses.replace(GOOD, compared=None), None, Policy()).gates if g.name == "photo_recall"
    )
    assert first == f"{RECALL}: 0.900 (any value passes: there is no live version to compare with)"


def test_the_first_version_needs_no_live_one() -> None:
    first = dataclasses.replace(GOOD, compared=None)
    assert decide(first, None, Policy()).passed
    assert decide(dataclasses.replace(first, ranks={}), None, Policy()).passed
