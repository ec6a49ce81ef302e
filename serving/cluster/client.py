"""Fan-out of one request to several shards, with hedging and retries; each shard's first answer counts."""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serving.cluster.fleet import Backend, ConnectionFailed, Fleet
from serving.cluster.hedging import HedgeBudget, Latencies
from serving.cluster.metrics import GatewayMetrics
from serving.cluster.wire import MEDIA_TYPE
from serving.telemetry import logs, tracing

MIN_HEDGE_S = 0.002
MAX_TRIES = 3

T = TypeVar("T")


class InvalidShardRequest(Exception):
    """A shard answered 422: the request itself is invalid."""


@dataclass(frozen=True)
class ShardRequest:
    """One request to several shards, from `began` to `until` (seconds by the client's clock).

    `body(shard, left_s)` makes a shard's request body; `read` parses an answer's body and raises ValueError for an invalid one. A
    request that is not `hedgeable` is slow by nature: it is neither hedged nor counted in the shard's latencies.
    """

    path: str
    version: str
    body: Callable[[int, float], bytes]
    read: Callable[[bytes], Any]
    began: float
    until: float
    most_s: float
    hedgeable: bool
    headers: dict[str, str]


@dataclass(frozen=True)
class Call:
    """An HTTP request in flight to one process."""

    shard: int
    backend: Backend
    began: float
    hedge: bool


@dataclass
class PendingShard:
    """A shard that has not answered yet: the processes tried, and when to hedge."""

    tried: set[str] = field(default_factory=set)
    under_way: int = 0
    hedge_at: float = float("inf")


class ShardClient:
    """Client of a gateway's shard fleet. Thread-safe."""

    def __init__(
        self, fleet: Fleet, metrics: GatewayMetrics, timeout_s: float, hedges: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`timeout_s`: timeout per shard; `hedges`: the share of requests that may be hedged."""
        self.fleet, self.metrics, self.timeout_s, self.clock = fleet, metrics, timeout_s, clock
        self.budget = HedgeBudget(hedges)
        self.latencies: dict[tuple[str, int], Latencies] = {}

    def fan_out(
        self,
        path: str,
        version: str,
        shards: list[int],
        request: Callable[[int, float], bytes],
        read: Callable[[bytes], T],
        latest: float | None = None,
        slow_s: float = 0.0,
    ) -> dict[int, T]:
        """Sends a request to all shards; returns answers by shard, without shards that did not answer in time.

        `version` is "version|digest"; `request(shard, left_s)` makes the body for a shard that has `left_s` seconds; `read` parses
        an answer and raises ValueError for an invalid one. A process that sent an invalid answer, or whose connection broke, gets no
        requests until a probe succeeds. `slow_s`: timeout of a request that is slow by nature. Raises InvalidShardRequest.
        """
        began = self.clock()
        most_s = slow_s or self.timeout_s
        until = min(began + most_s, latest if latest is not None else float("inf"))
        headers = {"content-type": MEDIA_TYPE} | request_headers()
        return FanOut(self, ShardRequest(path, version, request, read, began, until, most_s, not slow_s, headers)).run(shards)

    def observe(self, path: str, shard: int, took_s: float, hedged: bool) -> None:
        self.latencies.setdefault((path, shard), Latencies()).add(took_s)
        self.metrics.took.labels(str(shard)).observe(took_s)
        self.metrics.answers.labels(str(shard), "hedge" if hedged else "first").inc()

    def hedge_after_s(self, path: str, shard: int) -> float:
        known = self.latencies.get((path, shard))
        return max(known.p95_s, MIN_HEDGE_S) if known else float("inf")


class FanOut:
    """The HTTP requests of one ShardRequest, from the first to the last answer."""

    def __init__(self, client: ShardClient, request: ShardRequest) -> None:
        self.client, self.request, self.clock = client, request, client.clock
        self.calls: dict[Future[tuple[int, bytes]], Call] = {}
        self.pending: dict[int, PendingShard] = {}
        self.answers: dict[int, Any] = {}

    def run(self, shards: list[int]) -> dict[int, Any]:
        """The answers by shard. Raises InvalidShardRequest."""
        for shard in shards:
            self.client.budget.earn()
            self.pending[shard] = PendingShard()
            self._try(shard)
        while self.pending:
            now = self.clock()
            if now >= self.request.until:
                self._time_out()
                break
            for shard in [s for s, p in self.pending.items() if p.hedge_at <= now]:
                self._hedge(shard)
            next_at = min([self.request.until, *(p.hedge_at for p in self.pending.values())])
            done, _ = wait(self.calls, max(0.0, next_at - self.clock()), FIRST_COMPLETED)
            for future in done:
                self._receive(future, self.calls.pop(future))
        for future in self.calls:  # whoever was too slow is not listened to any more
            future.cancel()
        return self.answers

    def _try(self, shard: int) -> None:
        """Sends the request to one more process; gives the shard up when none is left and none is in flight."""
        self.pending[shard].hedge_at = float("inf")
        if (backend := self._another(shard)) is not None:
            self._send(shard, backend)
        elif not self.pending[shard].under_way:
            self._lose(shard)

    def _hedge(self, shard: int) -> None:
        """Sends the request to one more process where there is one and the budget has a hedge left."""
        self.pending[shard].hedge_at = float("inf")
        if (backend := self._another(shard)) is not None and self.client.budget.spend():
            self._send(shard, backend, hedge=True)

    def _another(self, shard: int) -> Backend | None:
        """A process of this shard that was not tried yet; None after MAX_TRIES."""
        tried = self.pending[shard].tried
        return self.client.fleet.choose(shard, self.request.version, tried) if len(tried) < MAX_TRIES else None

    def _send(self, shard: int, backend: Backend, hedge: bool = False) -> None:
        state, request = self.pending[shard], self.request
        state.tried.add(backend.name)
        state.under_way += 1
        now = self.clock()
        left_s = request.until - now
        backend.count(1)
        body = request.body(shard, left_s)
        future = self.client.fleet.requests.submit(backend.request, "POST", request.path, left_s, body, request.headers)
        future.add_done_callback(lambda _: backend.count(-1))
        self.calls[future] = Call(shard, backend, now, hedge)
        if request.hedgeable and not hedge:
            state.hedge_at = now + self.client.hedge_after_s(request.path, shard)

    def _receive(self, future: Future[tuple[int, bytes]], call: Call) -> None:
        try:
            status, body = future.result()
            answer = self.request.read(body) if status == 200 else None
        except (ConnectionFailed, ValueError) as error:
            if self.clock() < self.request.until:  # later it is our own time that ran out: `_time_out` judges that
                call.backend.mark_down(str(error))
            return self._next(call.shard)
        if call.shard not in self.pending:
            return None
        if status == 422:
            raise InvalidShardRequest(body.decode(errors="replace"))
        if status != 200:  # too busy, or without this version: another may have it
            if status == 409:
                call.backend.ready -= {self.request.version}
            return self._next(call.shard)
        if self.request.hedgeable:
            self.client.observe(self.request.path, call.shard, self.clock() - call.began, call.hedge)
        self.answers[call.shard] = answer
        del self.pending[call.shard]
        return None

    def _next(self, shard: int) -> None:
        if shard in self.pending:
            self.pending[shard].under_way -= 1
            self._try(shard)

    def _time_out(self) -> None:
        """Gives up the pending shards. A process that had the whole timeout is marked down until a probe succeeds."""
        waited_s = self.request.until - self.request.began
        for future, call in self.calls.items():
            whole = waited_s >= self.request.most_s - 1e-3 and not call.hedge and not future.cancel()
            if whole and call.shard in self.pending:
                call.backend.mark_down(f"no answer within {waited_s:.2g} s")
        for shard in list(self.pending):
            self._lose(shard)

    def _lose(self, shard: int) -> None:
        del self.pending[shard]
        self.client.metrics.answers.labels(str(shard), "lost").inc()


def request_headers() -> dict[str, str]:
    """Headers that propagate the request id and the trace context to a shard."""
    request_id, parent = logs.request_id.get(), tracing.parent.get()
    found = {"x-request-id": request_id, "traceparent": parent}
    return {name: value for name, value in found.items() if value}
