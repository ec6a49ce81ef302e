"""The table of checks, the cost and the freshness: pure figures in, verdicts out."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tasks.watch.checks import Figures, Limits, checks
from tasks.watch.cost import Prices, Work, cost
from tasks.watch.freshness import Freshness, freshness, newest_change_s
from tasks.watch.replica_metrics import Counters, samples_of

GOOD = Figures(
    version="7", encoder="2", queries=300, real=True, recall=0.98, embedding_drift=0.01, query_drift=0.02, delta_share=0.01,
    tombstone_share=0.01, compaction="", freshness=Freshness(3600.0, 900.0, 3000.0, 50), hit_rates={"response": 0.2},
    requests=1000, error_share=0.0, p99_ms=50.0, silent=(), cost_per_million_products=2.0, cost_per_thousand_queries=0.001,
)  # fmt: skip

CASES = [
    ({}, []),
    ({"recall": 0.9}, ["live_recall"]),
    ({"silent": ("http://a",)}, ["silent_replicas"]),
    ({"embedding_drift": 0.3}, ["embedding_drift"]),
    ({"query_drift": 0.3}, ["query_drift"]),
    ({"query_drift": None, "embedding_drift": None}, []),
    ({"freshness": Freshness(27 * 3600.0, 0, 0, 0)}, ["age_s"]),
    ({"freshness": Freshness(0.0, 0, 0, 0)}, []),
    ({"p99_ms": 500.0}, ["p99_ms"]),
    ({"error_share": 0.5}, ["errors"]),
    ({"error_share": 0.5, "requests": 20}, []),
]


@pytest.mark.parametrize(("changed", "failing"), CASES)
def test_each_figure_fails_its_own_check_and_no_other(changed: dict, failing: list[str]) -> None:
    table = checks(replace(GOOD, **changed), Limits())
    assert [gate.name for gate in table if not gate.passed] == failing


SENTENCES = [
    ("live_recall", {}, "Recall@10 of the live version against exact search, on 300 real queries: 0.980 (at least 0.950 is required)"),
    (
        "live_recall", {"recall": 0.9, "real": False},
        "Recall@10 of the live version against exact search, on 300 held-out photos (too few real queries were sampled): 0.900 (at least "
        "0.950 is required)",
    ),
    ("silent_replicas", {"silent": ("http://a:1",)}, "Replicas that do not respond (http://a:1): 1 (at most 0 is allowed)"),
    (
        "query_drift", {"query_drift": 0.3},
        "Drift of shoppers' queries since the first measurement (population stability index beyond chance): 0.300 (at most 0.250 is "
        "allowed)",
    ),
    (
        "age_s", {"freshness": Freshness(27 * 3600.0, 0, 0, 0)},
        "Newest change that shoppers can find is 27.0 h old (at most 26.0 h is allowed)",
    ),
    ("p99_ms", {"p99_ms": 500.0}, "p99 of shoppers' requests: 500 ms (at most 200 ms is allowed)"),
    ("errors", {"error_share": 0.5}, "Requests answered with a server error: 50.00% (at most 1.00% is allowed)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "sentence"), SENTENCES)
def test_each_check_says_what_was_measured_and_what_is_allowed(name: str, changed: dict, sentence: str) -> None:
    assert next(g.reason for g in checks(replace(GOOD, **changed), Limits()) if g.name == name) == sentence


def test_figures_are_flattened_for_curves() -> None:
    flat = GOOD.flat()
    assert flat["hit_rate.response"] == 0.2
    assert flat["freshness.p99_s"] == 3000.0
    assert "real" not in flat
    assert all(isinstance(v, float) for v in flat.values())


def test_cost_is_time_times_price() -> None:
    """100 images in 36 s on two cores: a million take 100 hours on two cores."""
    assert cost(Work(100, 36, cores=2), 1e6, Prices(core_hour=0.05)) == pytest.approx(100 * 2 * 0.05)
    assert cost(Work(100, 36, cores=2, gpus=1), 1e6, Prices(0.05, 0.5)) == pytest.approx(100 * (0.1 + 0.5))
    assert cost(Work(0, 0), 1e6, Prices()) == 0.0


def test_freshness_is_measured_from_the_change() -> None:
    stamps = pa.chunked_array([pa.array([1_000_000, 5_000_000, 9_000_000, None], pa.timestamp("us", tz="UTC"))])
    assert newest_change_s(stamps, np.array([True, True, False, True])) == 5.0
    assert newest_change_s(stamps, np.array([False, False, False, True])) == 0.0
    seen = freshness(65.0, 5.0, np.arange(101.0))
    assert seen == Freshness(60.0, 50.0, 99.0, 101)
    assert freshness(65.0, 0.0, np.zeros(0)) == Freshness(0.0, 0.0, 0.0, 0)


def test_counters_of_the_prometheus_text() -> None:
    text = '# TYPE a counter\na_total{route="/v1/search",status="200"} 3.0\n'
    assert samples_of(text) == [("a_total", {"route": "/v1/search", "status": "200"}, 3.0)]
    seen = Counters(
        1, (), {"response": 1.0}, {"response": 4.0}, 10, 0, 10, 1.0, {0.01: 5.0, 0.1: 98.0, 0.2: 99.0, float("inf"): 100.0}
    )
    assert seen.hit_rate("response") == 0.25
    assert seen.hit_rate("none") == 0.0
    assert seen.quantile_ms(0.05) == 10.0
    assert seen.quantile_ms(0.5) == 100.0
    assert seen.quantile_ms(0.99) == 200.0
