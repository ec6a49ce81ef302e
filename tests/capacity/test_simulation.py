"""The capacity model against queueing theory, its own invariants, and a replica that it measures."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.capacity.service_times import measure_times, read_times, synthetic_photos, write_times
from tasks.capacity.simulation import LoadTarget, Stage, Station, Times, plans, simulate
from tasks.errors import VitrineError
from tests.releases import make_release
from tests.running import Served, answers, until

N = 60_000


def exponential(mean: float) -> np.ndarray:
    return np.random.default_rng(1).exponential(mean, 50_000)


def one(times: np.ndarray, pods: int, cores: int) -> list[Stage]:
    return [Stage(((Station("s", pods, cores), times),))]


def test_one_core_waits_as_mm1_says() -> None:
    """M/M/1: time in the system is exponential with rate mu - lambda."""
    found = simulate(one(exponential(10.0), 1, 1), qps=60.0, queries=N)
    mean = 1 / (1 / 10.0 - 0.060)
    assert found.latency_ms.mean() == pytest.approx(mean, rel=0.08)
    assert found.percentile(99) == pytest.approx(-math.log(0.01) * mean, rel=0.12)
    assert found.load["s"] == pytest.approx(0.6, rel=0.03)


def test_constant_times_wait_half_as_long() -> None:
    """M/D/1: the mean wait is rho / (2 (1 - rho)) service times (Pollaczek-Khinchine)."""
    found = simulate(one(np.full(10, 10.0), 1, 1), qps=80.0, queries=N)
    assert found.latency_ms.mean() - 10 == pytest.approx(10 * 0.8 / (2 * 0.2), rel=0.1)


def test_four_cores_wait_as_erlang_c_says() -> None:
    load, cores = 3.2, 4
    waiting = load**cores / math.factorial(cores) * cores / (cores - load)
    erlang = waiting / (sum(load**n / math.factorial(n) for n in range(cores)) + waiting)
    found = simulate(one(exponential(10.0), 1, cores), qps=1e3 * load / 10.0, queries=N)
    assert found.latency_ms.mean() - 10 == pytest.approx(erlang * 10.0 / (cores - load), rel=0.12)


def test_a_query_waits_for_its_slowest_shard() -> None:
    """With nothing queued, the mean of the largest of n exponential times is the n-th harmonic number."""
    shards = tuple((Station(f"s{n}", 50, 4), exponential(1.0)) for n in range(8))
    found = simulate([Stage(shards, delay_ms=2.0)], qps=100.0)
    assert found.latency_ms.mean() == pytest.approx(2.0 + sum(1 / n for n in range(1, 9)), rel=0.05)


def test_two_choices_balance_better_than_one_queue_each() -> None:
    times = exponential(10.0)
    apart = simulate(one(times, 1, 1), qps=90.0, queries=N)
    chosen = simulate(one(times, 10, 1), qps=900.0, queries=N)
    together = simulate(one(times, 1, 10), qps=900.0, queries=N)
    assert together.percentile(99) < chosen.percentile(99) < apart.percentile(99)


def test_a_station_that_is_visited_twice_is_one_queue() -> None:
    """Two visits of half the work load a core as one visit of the whole does, and everybody leaves."""
    station, half = Station("s", 1, 2), np.full(10, 5.0)
    twice = simulate([Stage(((station, half),)), Stage(((station, half),))], qps=150.0, queries=N)
    once = simulate(one(np.full(10, 10.0), 1, 2), qps=150.0, queries=N)
    assert twice.load["s"] == pytest.approx(once.load["s"], rel=0.01)
    assert twice.latency_ms.min() == pytest.approx(10.0)
    assert once.latency_ms.mean() < twice.latency_ms.mean() < 1.4 * once.latency_ms.mean()


def test_the_same_seed_gives_the_same_answer() -> None:
    path = one(exponential(10.0), 3, 2)
    np.testing.assert_array_equal(simulate(path, 300.0, 5000).latency_ms, simulate(path, 300.0, 5000).latency_ms)


@pytest.fixture
def times() -> Times:
    rng = np.random.default_rng(3)
    draw = lambda mean: rng.gamma(9, mean / 9, 500)  # noqa: E731
    return Times(draw(8.0), draw(2.0), draw(0.4), draw(1.0), products=1_000_000)


def test_a_plan_keeps_the_deadline_and_more_load_needs_more_pods(times: Times) -> None:
    few = plans(times, LoadTarget(qps=500, p99_ms=40, encoder_cores=2), queries=6000)[-1]
    many = plans(times, LoadTarget(qps=2000, p99_ms=40, encoder_cores=2), queries=6000)[-1]
    strict = plans(times, LoadTarget(qps=2000, p99_ms=25, encoder_cores=2), queries=6000)[-1]
    assert few.p99_ms <= 40
    assert few.shards == many.shards == 10
    assert many.encoders > 2 * few.encoders  # four times the load; large fleets run fuller
    assert strict.p99_ms <= 25
    assert strict.load < many.load
    assert strict.encoders > many.encoders


def test_pods_are_never_fuller_than_planned(times: Times) -> None:
    for plan in plans(times, LoadTarget(qps=1000, p99_ms=30), queries=6000):
        assert plan.encoder_load <= plan.load * 1.05
        assert plan.index_load <= plan.load * 1.05


def test_what_no_number_of_pods_can_do_is_said(times: Times) -> None:
    with pytest.raises(VitrineError, match="no number of pods keeps the 99th percentile under 5 ms"):
        plans(times, LoadTarget(qps=100, p99_ms=5), queries=3000)
    with pytest.raises(VitrineError, match="at least 50, is needed"):
        replace(times, rank=times.rank[:10])


def test_times_are_kept_and_read_again(times: Times, tmp_path: Path) -> None:
    write_times(tmp_path / "times.json", times)
    again = read_times(tmp_path / "times.json")
    np.testing.assert_allclose(again.total, times.total, atol=1e-3)
    assert again.products == 1_000_000
    (tmp_path / "times.json").write_text("{}")
    with pytest.raises(VitrineError, match="holds no measured times"):
        read_times(tmp_path / "times.json")


@pytest.fixture
def asked_url(tmp_path: Path) -> Iterator[str]:
    """A replica of 12 products that is ready."""
    make_release(tmp_path)
    with Served(create_app(ServingSettings(release=str(tmp_path / "release"), poll_s=0.05, deadline_s=60))) as served:
        until(lambda: answers(f"{served.url}/readyz"), "the replica is ready")
        yield served.url


@pytest.mark.slow
def test_a_running_replica_is_measured(asked_url: str) -> None:
    found = measure_times(asked_url, synthetic_photos(75, seed=1))
    assert len(found.encode) == 55
    assert found.products == 12
    assert (found.total > 0).all()
    with pytest.raises(VitrineError, match="from its cache"):
        measure_times(asked_url, synthetic_photos(75, seed=1))
    with pytest.raises(VitrineError, match="does not answer"):
        measure_times("http://127.0.0.1:9", synthetic_photos(1, seed=1))
