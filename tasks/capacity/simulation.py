"""Queueing simulation over measured service times: pods needed for a load. Pure functions.

A query arrives at a random time (Poisson), passes stages one after the other, and within a stage visits one or more stations at
once and waits for the last of them. A station is a number of pods with some cores each; of two pods drawn at random the one with
fewer queries takes it ("the power of two choices"), and serves in the order of arrival. A visit takes a measured time, drawn at
random. Queues are what makes this worth simulating: at a given load the 99th percentile depends on how times scatter, which no
formula for exponential times says.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.errors import VitrineError

LEAST_SAMPLES = 50
LOADS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
INTERPRETER_LOAD = 0.7
"""How busy the one thread that runs Python may be in a process: above that its own queue shows in the 99th percentile."""


@dataclass(frozen=True)
class Times:
    """Measured times of sequential single queries in milliseconds; each (n,) float64, row i of the same query.

    `encode`: decoding and encoding; `retrieve`: searching the `products` of the replica that was measured; `rank`; `rest`: what
    else passed until the client had the answer (HTTP, JSON).
    """

    encode: np.ndarray
    retrieve: np.ndarray
    rank: np.ndarray
    rest: np.ndarray
    products: int

    def __post_init__(self) -> None:
        sizes = {len(a) for a in (self.encode, self.retrieve, self.rank, self.rest)}
        if len(sizes) != 1 or min(sizes) < LEAST_SAMPLES:
            raise VitrineError(
                f"measured times of {sorted(sizes)} queries, where the same number, at least {LEAST_SAMPLES}, is needed"
            )

    @property
    def total(self) -> np.ndarray:
        """Latency of one query on an idle replica of role `all`."""
        return self.encode + self.retrieve + self.rank + self.rest


@dataclass(frozen=True, eq=False)
class Station:
    """`pods` pods with `cores` cores each."""

    name: str
    pods: int
    cores: int


@dataclass(frozen=True, eq=False)
class Stage:
    """Stations visited in parallel: for each, the service times (n,) ms of a visit; then `delay_ms` until the next stage."""

    visits: tuple[tuple[Station, np.ndarray], ...]
    delay_ms: float = 0.0


@dataclass(frozen=True)
class SimulationResult:
    """`latency_ms` (n,) per query after warm-up, and the utilisation of each station's cores."""

    latency_ms: np.ndarray
    load: dict[str, float]

    def percentile(self, percentile: float) -> float:
        return float(np.percentile(self.latency_ms, percentile))


@dataclass
class Pod:
    busy: int = 0
    queue: deque[tuple[int, int, float]] = field(default_factory=deque)

    @property
    def in_flight(self) -> int:
        return self.busy + len(self.queue)


def simulate(path: Sequence[Stage], qps: float, queries: int = 20_000, seed: int = 0, warm: float = 0.1) -> SimulationResult:
    """Sends `queries` through the stages of `path` at `qps`; the first share `warm` is discarded."""
    rng, choice = np.random.default_rng(seed), random.Random(seed)
    arrived = np.cumsum(rng.exponential(1e3 / qps, queries))
    drawn = [[times[rng.integers(0, len(times), queries)].tolist() for _, times in stage.visits] for stage in path]
    pods = {s: [Pod() for _ in range(s.pods)] for stage in path for s, _ in stage.visits}
    used: dict[str, float] = {}
    left = [0] * queries
    ended = np.zeros(queries)
    events: list[tuple[float, int, int, int, Station | None, Pod | None]] = []
    for query, at in enumerate(arrived.tolist()):
        events.append((at, query, query, 0, None, None))
    number = queries

    def push(at: float, query: int, stage: int, station: Station | None, pod: Pod | None) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, query, stage, station, pod))

    while events:
        now, _, query, place, station, pod = heapq.heappop(events)
        stage = path[place]
        if station is None:  # the query enters the stage
            left[query] = len(stage.visits)
            for (where, _), times in zip(stage.visits, drawn[place], strict=True):
                found, took = _choose(pods[where], choice), times[query]
                used[where.name] = used.get(where.name, 0.0) + took
                if found.busy < where.cores:
                    found.busy += 1
                    push(now + took, query, place, where, found)
                else:
                    found.queue.append((query, place, took))
            continue
        assert pod is not None
        if pod.queue:
            following, its_place, took = pod.queue.popleft()
            push(now + took, following, its_place, station, pod)
        else:
            pod.busy -= 1
        left[query] -= 1
        if left[query]:
            continue
        if place + 1 < len(path):
            push(now + stage.delay_ms, query, place + 1, None, None)
        else:
            ended[query] = now + stage.delay_ms
    first = int(warm * queries)
    cores = {s.name: s.pods * s.cores for stage in path for s, _ in stage.visits}
    span = float(arrived[-1] - arrived[0])
    return SimulationResult((ended - arrived)[first:], {name: spent / (span * cores[name]) for name, spent in used.items()})


def _choose(pods: list[Pod], choice: random.Random) -> Pod:
    if len(pods) == 1:
        return pods[0]
    a, b = choice.randrange(len(pods)), choice.randrange(len(pods) - 1)
    first, second = pods[a], pods[b + (b >= a)]
    return first if first.in_flight <= second.in_flight else second


def replica_path(times: Times, cores: int) -> list[Stage]:
    """One replica of role `all` with this many cores (or workers, if fewer)."""
    return [Stage(((Station("replica", 1, cores), times.total),))]


@dataclass(frozen=True)
class LoadTarget:
    """The load to size for. `encoder_cores`, `index_cores`: per pod; `network_ms`: one way between gateway and shard."""

    qps: float = 10_000.0
    p99_ms: float = 200.0
    products: int = 10_000_000
    encoder_cores: int = 4
    index_cores: int = 4
    network_ms: float = 0.5


@dataclass(frozen=True)
class Plan:
    """A cluster at some utilisation: `encoders` gateways, `shards` shards of `replicas` pods; and its simulated latencies."""

    load: float
    encoders: int
    shards: int
    replicas: int
    p50_ms: float
    p99_ms: float
    encoder_load: float
    index_load: float

    @property
    def index_pods(self) -> int:
        return self.shards * self.replicas


def cluster_path(times: Times, target: LoadTarget, encoders: int, shards: int, replicas: int) -> list[Stage]:
    """Gateways encode, all shards search in parallel, gateways rank and respond."""
    gateway = Station("gateway", encoders, target.encoder_cores)
    held = tuple((Station(f"shard {n}", replicas, target.index_cores), times.retrieve) for n in range(shards))
    way = target.network_ms
    return [Stage(((gateway, times.encode),), way), Stage(held, way), Stage(((gateway, times.rank + times.rest),))]


def plans(times: Times, target: LoadTarget, queries: int = 20_000, seed: int = 0) -> list[Plan]:
    """Plans from the highest utilisation down, up to and including the first that meets the 99th percentile.

    Raises VitrineError when none does, because single queries already take too long.
    """
    shards = max(1, math.ceil(target.products / times.products))
    work = times.encode.mean() + times.rank.mean() + times.rest.mean()
    python = (times.rank.mean() + times.rest.mean()) * target.qps / 1e3
    found: list[Plan] = []
    for load in LOADS:
        encoders = math.ceil(max(target.qps * work / 1e3 / target.encoder_cores / load, python / min(load, INTERPRETER_LOAD)))
        replicas = math.ceil(target.qps * times.retrieve.mean() / 1e3 / target.index_cores / load)
        told = simulate(cluster_path(times, target, encoders, shards, replicas), target.qps, queries, seed)
        index_load = float(np.mean([v for n, v in told.load.items() if n != "gateway"]))
        found.append(
            Plan(load, encoders, shards, replicas, told.percentile(50), told.percentile(99), told.load["gateway"], index_load)
        )
        if found[-1].p99_ms <= target.p99_ms:
            return found
    best = min(p.p99_ms for p in found)
    raise VitrineError(
        f"no number of pods keeps the 99th percentile under {target.p99_ms:g} ms: with pods {LOADS[-1]:.0%} busy it is {best:.0f} ms;"
        " a faster encoder, smaller shards or a later deadline is needed"
    )
