"""The scalers of docker/kubernetes over a simulated fleet: a load that rises threefold within minutes, and falls.

`make e2e-autoscaling` does the same with real processes, HAProxy and Prometheus.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

import numpy as np
import pytest

from serving.telemetry.metrics import BUCKETS_S
from tests.docker.horizontal_scaler import SYNC_S, HorizontalScaler, Policy, Trigger
from tests.serving.test_deployment import kubernetes

CORES = 4
START_S = 60.0
"""From the beginning of a pod until it is ready."""
DEADLINE_S = 5.0
SCRAPES = {"1m": 4, "2m": 8}
"""As many intervals of Prometheus (15 s) in a window of a query."""


@dataclass(frozen=True)
class Seen:
    """A quarter of a minute: pods that there should be, that are ready, that are needed at 70 %, and the p99 of the answers."""

    pods: int
    ready: int
    needed: float
    p99_s: float
    dropped: int


@dataclass
class Fleet:
    """Pods of CORES cores that share a queue; a query takes `service_s` of a core (gamma, a third of it scatters)."""

    service_s: float
    pods: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.free = [0.0] * (self.pods * CORES)
        self.starting: deque[float] = deque()
        self.leaving = 0
        self.ends = np.zeros(0)

    def scale(self, now: float, pods: int) -> None:
        self.starting.extend([now + START_S] * max(0, pods - self.pods))
        self.leaving += CORES * max(0, self.pods - pods)
        self.pods = pods
        while self.starting and self.starting[0] <= now:
            for _ in range(CORES):
                heappush(self.free, self.starting[0])
            self.starting.popleft()
        for _ in range(self.leaving):
            heappop(self.free)  # a core that is idle, or the next to be: it ends what it does
        self.leaving = 0

    @property
    def ready(self) -> int:
        return len(self.free) // CORES

    def answer(self, now: float, qps: float) -> tuple[np.ndarray, int]:
        """The times of the answers of the next SYNC_S seconds, and how many waited too long to be answered."""
        number = self.rng.poisson(qps * SYNC_S)
        arrived = now + np.sort(self.rng.uniform(0, SYNC_S, number))
        work = self.rng.gamma(9, self.service_s / 9, number)
        ended, free = [], self.free
        for at, takes in zip(arrived.tolist(), work.tolist(), strict=True):
            begin = max(free[0], at)
            if begin - at > DEADLINE_S:
                ended.append(np.nan)
                continue
            heapreplace(free, begin + takes)
            ended.append(begin + takes)
        ends = np.array(ended)
        kept = ~np.isnan(ends)
        self.ends = np.append(self.ends, ends[kept])
        return (ends - arrived)[kept], int((~kept).sum())

    def busy(self, now: float) -> int:
        """Queries at work or waiting."""
        self.ends = self.ends[self.ends > now]
        return len(self.ends)


class Prometheus:
    """The two kinds of query that the scalers make, over what the fleet shows at each scrape."""

    def __init__(self) -> None:
        self.busy: deque[float] = deque(maxlen=SCRAPES["1m"])
        self.took: deque[np.ndarray] = deque(maxlen=SCRAPES["2m"])

    def scrape(self, busy: float, took_s: np.ndarray) -> None:
        self.busy.append(busy)
        self.took.append(np.bincount(np.searchsorted(BUCKETS_S, took_s), minlength=len(BUCKETS_S) + 1))

    def value(self, query: str, ready: int) -> float:
        most = float(re.findall(r", ([\d.]+)\)", query)[-1])
        if "vitrine_busy" in query:
            return min(float(np.mean(self.busy)), most * ready)
        return min(quantile(0.99, np.cumsum(sum(self.took))), most)


def quantile(q: float, counts: np.ndarray) -> float:
    """Prometheus's histogram_quantile over cumulative counts of BUCKETS_S and +Inf; 0 without any, as the scalers have it."""
    if not counts[-1]:
        return 0.0
    place = int(np.searchsorted(counts, q * counts[-1]))
    if place == len(BUCKETS_S):
        return BUCKETS_S[-1]
    lower, below = (BUCKETS_S[place - 1], counts[place - 1]) if place else (0.0, 0)
    return float(lower + (BUCKETS_S[place] - lower) * (q * counts[-1] - below) / (counts[place] - below))


def simulate(scaler: HorizontalScaler, service_s: float, qps: Callable[[float], float], minutes: float) -> list[Seen]:
    fleet, prometheus, found = Fleet(service_s, scaler.least), Prometheus(), []
    for step in range(int(minutes * 60 / SYNC_S)):
        now = step * SYNC_S
        took_s, dropped = fleet.answer(now, qps(now / 60))
        prometheus.scrape(fleet.busy(now + SYNC_S), took_s)
        values = [prometheus.value(t.query, fleet.ready) for t in scaler.triggers]
        fleet.scale(now + SYNC_S, scaler.pods(now + SYNC_S, fleet.pods, fleet.ready, values))
        needed = qps(now / 60) * service_s / CORES / 0.7
        found.append(Seen(fleet.pods, fleet.ready, needed, float(np.percentile(took_s, 99)), dropped))
    return found


def scaled_object(name: str, faster: float = 1.0) -> HorizontalScaler:
    return HorizontalScaler.read(
        next(d["spec"] for d in kubernetes() if (d["kind"], d["metadata"]["name"]) == ("ScaledObject", name)), faster
    )


def rise_and_fall(scaler: HorizontalScaler, service_s: float) -> list[Seen]:
    """45 % of what the least number of pods can do, three times that five minutes later, and back."""
    night = 0.45 * scaler.least * CORES / service_s
    return simulate(scaler, service_s, lambda minute: night * float(np.interp(minute, [3, 8, 14, 18], [1, 3, 3, 1])), 36)


@pytest.mark.parametrize(("name", "service_s"), [("vitrine-gateway", 0.05), ("vitrine-shards-0-1", 0.01)])
def test_a_load_that_triples_in_five_minutes_is_carried_and_pods_go_when_it_falls(name: str, service_s: float) -> None:
    scaler = scaled_object(name)
    seen = rise_and_fall(scaler, service_s)
    assert max(s.p99_s for s in seen) < 0.2, "the budget of a search, in every quarter of a minute"
    assert not any(s.dropped for s in seen)
    needed, most = max(s.needed for s in seen), max(s.pods for s in seen)
    assert needed <= most <= 1.5 * needed, "no more pods than the load asks for, but for the margin"
    assert seen[-1].pods <= scaler.least + 1
    changes = np.sign(np.diff([s.pods for s in seen]))
    directions = changes[changes != 0]
    assert (np.diff(directions) != 0).sum() == 1, "out, then in: nothing swings"


def test_by_the_p99_alone_pods_would_come_late_and_be_far_too_many() -> None:
    """Why shards are scaled by what waits in them, too: a percentile says nothing until the pods are full."""
    scaler = scaled_object("vitrine-shards-0-1")
    (by_p99,) = scaler.triggers = [t for t in scaler.triggers if t.whole]
    assert "request_seconds" in by_p99.query, "the time with its wait, unlike vitrine_shard_search_seconds"
    seen = rise_and_fall(scaler, 0.01)
    assert max(s.p99_s for s in seen) > 0.2
    assert max(s.pods for s in seen) > 3 * max(s.needed for s in seen)


SHARE, WHOLE = Trigger("", 4, False), Trigger("", 4, True)


@pytest.mark.parametrize(
    ("trigger", "value", "pods"),
    [
        (SHARE, 8.7, 2),
        (SHARE, 8.9, 3),
        (SHARE, 7.1, 2),
        (SHARE, 4.0, 1),
        (WHOLE, 4.4, 2),
        (WHOLE, 4.5, 2),
        (WHOLE, 9, 3),
        (WHOLE, 1, 1),
    ],
)
def test_a_trigger_asks_for_as_many_pods_as_bring_it_to_its_threshold(trigger: Trigger, value: float, pods: int) -> None:
    """Two pods, one of them ready: a value as it is, such as a percentile, is multiplied with the ready ones."""
    assert trigger.pods(value, 2, 1) == pods


def test_pods_come_at_once_within_the_policies_and_go_after_the_window() -> None:
    up, down = [Policy(True, 50, 30), Policy(False, 2, 30)], [Policy(False, 1, 60)]
    scaler = HorizontalScaler(1, 9, [SHARE], up, down, window_s=300)
    pods, found = 1, []
    for step in range(60):
        pods = scaler.pods(15.0 * step, pods, pods, [36.0 if step < 8 else 4.0])
        found.append(pods)
    assert found[:8] == [3, 3, 5, 5, 8, 8, 9, 9]
    assert found[8 + 19 :: 4] == [9, 8, 7, 6, 5, 4, 3, 2, 1][: len(found[8 + 19 :: 4])]
