"""One question to several shards at once: in parallel, with hedges and second tries, each answered by the first that does.

Everything happens in the calling thread: it writes to all connections, then waits for all of them together.
"""

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serving.metrics import Metrics
from serving.shards.connection import Connection, ConnectionFailed
from serving.shards.fleet import Backend, Fleet
from serving.shards.hedging import Budget, Latencies
from serving.shards.wire import on_behalf

LEAST_HEDGE_S = 0.002
MOST_TRIES = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What is asked of several shards, from `began` to `until`; one that is not `usual` is slow by its nature.

    `read` makes an answer of a body. Raises ValueError for a body that is none.
    """

    path: str
    wanted: str
    body: Callable[[int, float], bytes]
    read: Callable[[bytes], Any]
    began: float
    until: float
    most_s: float
    usual: bool
    headers: bytes


@dataclass
class Call:
    """A question under way to one process."""

    shard: int
    backend: Backend
    connection: Connection
    began: float
    hedge: bool


@dataclass
class Open:
    """A shard that has not answered yet: which processes were tried, and when to ask one more."""

    tried: set[str] = field(default_factory=set)
    under_way: int = 0
    hedge_at: float = float("inf")


class Asking:
    """Asks the shards of a fleet. One for a gateway; many threads may ask at once."""

    def __init__(
        self, fleet: Fleet, metrics: Metrics, timeout_s: float, hedges: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`timeout_s`: what a shard gets at most; `hedges`: the share of questions that may be asked twice."""
        self.fleet, self.metrics, self.timeout_s, self.clock = fleet, metrics, timeout_s, clock
        self.budget = Budget(hedges)
        self.latencies: dict[tuple[str, int], Latencies] = {}

    def ask(
        self,
        path: str,
        wanted: str,
        shards: list[int],
        question: Callable[[int, float], bytes],
        read: Callable[[bytes], T],
        latest: float | None = None,
        slow_s: float = 0.0,
    ) -> dict[int, T]:
        """The answers by shard; a shard that could not answer in time is not among them.

        `wanted` is "version|digest"; `question(shard, left_s)` makes the body for a shard that has `left_s` seconds; `read` makes
        an answer of what came, and raises ValueError for what is none: who sent that is asked no more, like one who broke off.
        `slow_s`: a question that may take this long; it is not hedged and tells nothing of how fast a shard is.
        """
        began = self.clock()
        most_s = slow_s or self.timeout_s
        until = min(began + most_s, latest if latest is not None else float("inf"))
        exchange = Exchange(self, Question(path, wanted, question, read, began, until, most_s, not slow_s, on_behalf()))
        try:
            return exchange.run(shards)
        finally:
            exchange.close()

    def took(self, path: str, shard: int, took_s: float, hedged: bool) -> None:
        self.latencies.setdefault((path, shard), Latencies()).add(took_s)
        self.metrics.shard_took.labels(str(shard)).observe(took_s)
        self.metrics.shard_asked.labels(str(shard), "hedge" if hedged else "first").inc()

    def hedge_after_s(self, path: str, shard: int) -> float:
        known = self.latencies.get((path, shard))
        return max(known.late_s, LEAST_HEDGE_S) if known else float("inf")


class Exchange:
    """One question's calls, from the first to the last answer."""

    def __init__(self, asking: Asking, question: Question) -> None:
        self.asking, self.question, self.clock = asking, question, asking.clock
        self.calls: dict[int, Call] = {}
        self.open: dict[int, Open] = {}
        self.answers: dict[int, Any] = {}
        self.poll = select.poll()

    def run(self, shards: list[int]) -> dict[int, Any]:
        for shard in shards:
            self.asking.budget.earn()
            self.open[shard] = Open()
            self._try(shard)
        while self.open:
            now = self.clock()
            if now >= self.question.until:
                self._late()
                break
            for shard in [s for s, o in self.open.items() if o.hedge_at <= now]:
                self._hedge(shard)
            next_at = min([self.question.until, *(o.hedge_at for o in self.open.values())])
            for fd, _ in self.poll.poll(max(0.0, 1e3 * (next_at - self.clock()))):
                if fd in self.calls:
                    self._read(self.calls[fd])
        return self.answers

    def close(self) -> None:
        """Gives up what is still under way: whoever was too slow is not listened to any more."""
        for call in list(self.calls.values()):
            self._end(call, whole=False)

    def _try(self, shard: int, hedge: bool = False) -> None:
        """Asks one more process; a shard that nobody else can answer for, and nobody is asked, is given up."""
        state = self.open[shard]
        while len(state.tried) < MOST_TRIES:
            backend = self.asking.fleet.choose(shard, self.question.wanted, state.tried)
            if backend is None:
                break
            state.tried.add(backend.name)
            try:
                connection = backend.connection()
                body = self.question.body(shard, self.question.until - self.clock())
                connection.ask("POST", self.question.path, body, self.question.headers)
            except ConnectionFailed as error:
                backend.down(str(error))
                continue
            backend.count(1)
            now = self.clock()
            self.calls[connection.fd] = Call(shard, backend, connection, now, hedge)
            self.poll.register(connection.fd, select.POLLIN)
            state.under_way += 1
            state.hedge_at = float("inf")
            if self.question.usual and not hedge:
                state.hedge_at = now + self.asking.hedge_after_s(self.question.path, shard)
            return
        state.hedge_at = float("inf")
        if not state.under_way:
            self._lose(shard)

    def _hedge(self, shard: int) -> None:
        state = self.open[shard]
        state.hedge_at = float("inf")
        if self.asking.fleet.choose(shard, self.question.wanted, state.tried) is not None and self.asking.budget.spend():
            self._try(shard, hedge=True)

    def _read(self, call: Call) -> None:
        try:
            body = call.connection.read()
            if body is None:
                return
            status = call.connection.status
            answer = self.question.read(body) if status == 200 else None
        except (ConnectionFailed, ValueError) as error:
            call.backend.down(str(error))
            self._again(call)
            return
        self._end(call, whole=True)
        if call.shard not in self.open:
            return
        if status == 200:
            if self.question.usual:
                self.asking.took(self.question.path, call.shard, self.clock() - call.began, call.hedge)
            self.answers[call.shard] = answer
            del self.open[call.shard]
            for other in [c for c in self.calls.values() if c.shard == call.shard]:
                self._end(other, whole=False)
        elif status == 422:
            raise Refusal(body.decode(errors="replace"))
        else:  # too busy, or without this version: another may have it
            if status == 409:
                call.backend.ready -= {self.question.wanted}
            self._next(call.shard)

    def _again(self, call: Call) -> None:
        self._end(call, whole=False)
        if call.shard in self.open:
            self._next(call.shard)

    def _next(self, shard: int) -> None:
        self.open[shard].under_way -= 1
        self._try(shard)

    def _late(self) -> None:
        """The time is over. A process that had all the time a shard gets is not asked again until a probe finds it well."""
        waited_s = self.question.until - self.question.began
        for call in list(self.calls.values()):
            if waited_s >= self.question.most_s - 1e-3 and not call.hedge:
                call.backend.down(f"no answer within {waited_s:.2g} s")
        for shard in list(self.open):
            self._lose(shard)

    def _lose(self, shard: int) -> None:
        del self.open[shard]
        self.asking.metrics.shard_asked.labels(str(shard), "lost").inc()

    def _end(self, call: Call, whole: bool) -> None:
        del self.calls[call.connection.fd]
        self.poll.unregister(call.connection.fd)
        call.backend.count(-1)
        if whole:
            call.backend.keep(call.connection)
        else:
            call.connection.close()


class Refusal(Exception):
    """A shard says that the question itself is wrong."""
