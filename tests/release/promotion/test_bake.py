"""What the replicas' own metrics say after a flip, and what follows from it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.release.promotion.bake import BakePolicy, Reading, bake, decide, quantile_s, read_metrics, total
from tasks.release.promotion.serving_replicas import Replica

POLICY = BakePolicy()
FAST = {0.05: 900.0, 0.1: 995.0, 0.2: 1000.0, float("inf"): 1000.0}
GOOD = Reading(1000, 2, FAST, 50, 49.0, "7")


@pytest.mark.parametrize(
    ("change", "passed", "said"),
    [
        ({}, True, "2 of 1000 searches failed (0.2%, at most 1.0%)"),
        ({"errors": 11}, False, "11 of 1000 searches failed"),
        (
            {"searches": 19, "errors": 19, "buckets": {}, "samples": 0},
            True,
            "too few searches to judge it by (19 of 20 needed, 0 of 5 sampled queries needed)",
        ),
        ({"buckets": {0.2: 900.0, 0.5: 1000.0, float("inf"): 1000.0}}, False, "p99 470 ms (at most 200)"),
        ({"recall_sum": 44.0}, False, "recall@10 0.880 on 50 real queries (at least 0.90)"),
        ({"samples": 4, "recall_sum": 0.0}, True, "p99 97 ms"),
    ],
)
def test_each_figure_is_held_to_its_limit_once_there_is_enough_of_it(change: dict, passed: bool, said: str) -> None:
    decision = decide(dataclasses.replace(GOOD, **change), POLICY)
    assert decision.passed is passed
    assert said in decision.summary


def test_the_quantile_is_the_one_prometheus_gives() -> None:
    buckets = {0.1: 50.0, 0.2: 100.0, float("inf"): 100.0}
    assert quantile_s(buckets, 0.5) == pytest.approx(0.1)
    assert quantile_s(buckets, 0.75) == pytest.approx(0.15)
    assert quantile_s({0.1: 0.0, float("inf"): 10.0}, 0.99) == 0.1
    assert quantile_s({}, 0.99) == quantile_s({0.1: 0.0}, 0.99) == 0.0


def test_what_a_replica_tells_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "aliases.json").write_text("{}")
    replica = create_app(ServingSettings(release=str(tmp_path))).state.replica
    for status, took_s in ((200, 0.01), (200, 0.03), (503, 0.001), (422, 0.001)):
        replica.request_metrics.count("/v1/search", status, took_s)
    replica.request_metrics.count("/v1/version", 500, 0.1)
    searches = replica.search_metrics
    searches.phases.labels("total", "7").observe(0.01)
    searches.phases.labels("total", "7").observe(0.03)
    searches.phases.labels("total", "6").observe(0.9)
    searches.recall_queries.labels("7").set(4)
    searches.recall_sum.labels("7").set(3.5)
    replica.slot_metrics.live.labels("7", "blue").set(1)
    from prometheus_client import generate_latest

    found = read_metrics(generate_latest(replica.metrics.registry).decode(), "7")
    assert (found.searches, found.errors, found.samples, found.recall_sum, found.serves) == (4, 1, 4, 3.5, "7")
    assert found.buckets[0.02] == 1
    assert found.buckets[float("inf")] == 2


def test_only_what_happened_since_counts_and_a_restart_begins_anew() -> None:
    before = Reading(100, 50, {0.1: 100.0}, 10, 2.0)
    assert Reading(110, 51, {0.1: 110.0}, 12, 4.0).since(before) == Reading(10, 1, {0.1: 10.0}, 2, 2.0)
    restarted = Reading(5, 1, {0.1: 5.0}, 0, 0.0)
    assert restarted.since(before) == restarted
    assert total([GOOD, GOOD]).searches == 2000
    assert total([]).searches == 0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Telling(Replica):
    """A replica whose metrics are a function of time."""

    clock: Clock = field(default_factory=Clock)
    breaks_at: float = float("inf")
    gone_at: float = float("inf")

    def metrics(self) -> str:
        import httpx

        if self.clock.now >= self.gone_at:
            raise httpx.ConnectError("gone")
        searches = 10 * self.clock.now
        errors = max(0.0, 10 * (self.clock.now - self.breaks_at))
        return (
            f'vitrine_requests_total{{route="/v1/search",status="200"}} {searches - errors}\n'
            f'vitrine_requests_total{{route="/v1/search",status="500"}} {errors}\n'
            'vitrine_live_version{version="7",slot="blue"} 1.0\n'
        )


def baked(clock: Clock, **options: float) -> tuple[bool, str]:
    replicas = [Telling("http://a", "", clock), Telling("http://b", "", clock, **options)]
    decision = bake(replicas, "7", [Reading()] * 2, 60, POLICY, clock=clock, pause=clock.pause)
    return decision.passed, decision.summary


def test_a_version_that_holds_is_kept_at_the_end_of_the_window() -> None:
    clock = Clock()
    passed, said = baked(clock)
    assert (passed, clock.now) == (True, 60)
    assert "0 of 1200 searches failed" in said


def test_a_version_that_breaks_goes_long_before_the_window_ends() -> None:
    clock = Clock()
    passed, said = baked(clock, breaks_at=10)
    assert passed is False
    assert clock.now < 13
    assert "searches failed" in said


def test_a_replica_that_falls_silent_is_named() -> None:
    clock = Clock()
    passed, said = baked(clock, gone_at=55)
    assert (passed, "http://b did not serve version 7 for 15 s" in said) == (False, True)
    assert 69 <= clock.now <= 71


def test_a_bake_stops_when_the_lease_is_lost() -> None:
    def lost() -> None:
        raise RuntimeError("lost")

    clock = Clock()
    with pytest.raises(RuntimeError, match="lost"):
        bake([Telling("http://a", "", clock)], "7", [Reading()], 60, POLICY, lost, clock, clock.pause)
