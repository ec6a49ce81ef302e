"""One fault at a time, in the middle of a refresh and under searches: what was promised of it, and what was seen."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from tests.chaos import pipeline
from tests.chaos.shop import Shop
from tests.chaos.stack import Stack
from tests.load import Load, Shots

RATE = 10.0
"""Searches a second."""
CLIENTS = 24
HOUR_S = 600.0
"""An attempt that has not ended after this time hangs."""
BEFORE_S = 2.0
"""Searches begin so long before the hour, and end so long after it."""
AWAY_S = 1.0
"""So long after a load balancer is back a search may still have been sent to it while it was away."""
DEADLINE_MS = 5000.0
"""A replica's own deadline (VITRINE_DEADLINE_S): what is answered 200 took no longer."""

Kind = Literal["none", "kill", "pause", "cut", "slow", "damage", "fill"]
"""What a fault does: to a process, to its connections (cut, slow, damage) or to its disk (fill)."""


@dataclass(frozen=True)
class Fault:
    """`begin` `after_s` after the step `step` of the story was done ("": after its start), `end` after another `lasts_s` (None: once the
    first attempt is over).

    `kind` decides the bounds and the order, `what` is only for people. `story`: "hour" is the DAG refresh_index, "night" rebuild_index,
    each followed by promote_index (tests/chaos/pipeline.py).

    `answers`: whether searches must all be answered while it lasts. `slowest_ms`: for any answer. `attempts`: with how many the hour
    must be done; Airflow makes two of every step, after 20 s, and four of `embed` and `acknowledge`.
    """

    part: str
    kind: Kind
    what: str
    begin: Callable[["Drill"], None]
    end: Callable[["Drill"], None]
    promised: str
    answers: bool = True
    slowest_ms: float = DEADLINE_MS
    attempts: int = 2
    story: Literal["hour", "night"] = "hour"
    step: str = "drain_changes"
    after_s: float = 0.1
    lasts_s: float | None = 5.0

    @property
    def name(self) -> str:
        return f"{self.part}: {self.what}"


@dataclass
class Seen:
    """What came of a fault. `partial`: answers of fewer shards than there are. `failed` searches while it lasted, `failed_after` before or
    after it. `anew`: attempts that ended with an error which Airflow does not try again by itself, so that the next hour's run, or a
    person, does. `broken` says which bounds did not hold."""

    fault: str
    promised: str
    searches: int = 0
    partial: int = 0
    failed: int = 0
    failed_after: int = 0
    slowest_ms: float = 0.0
    attempts: int = 0
    anew: int = 0
    live_after_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class Happening(threading.Thread):
    """A fault that begins once its step is done, and ends. `times`: when it began and ended (epoch seconds), empty before.

    `attempted` is set when the first attempt is over, `over` when all are.
    """

    def __init__(self, drill: "Drill", fault: Fault, log: Path, seen: Seen) -> None:
        super().__init__(daemon=True)
        self.drill, self.fault, self.log, self.seen = drill, fault, log, seen
        self.attempted, self.over = threading.Event(), threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        fault = self.fault
        while fault.step and not (self.log.exists() and f"did {fault.step}" in self.log.read_text(errors="replace")):
            if self.over.wait(0.02):
                return
        time.sleep(fault.after_s)
        self.times.append(time.time())
        try:
            fault.begin(self.drill)
            if fault.lasts_s is None:
                self.attempted.wait(HOUR_S)
            else:
                time.sleep(fault.lasts_s)
        except Exception as error:
            self.seen.broken.append(f"the fault itself: {type(error).__name__}: {error}")
        finally:
            with suppress(ProcessLookupError):
                fault.end(self.drill)
            self.times.append(time.time())

    def end(self) -> None:
        """Waits for the end of the fault, or of what it waits for, once all attempts are over."""
        self.attempted.set()
        self.over.set()
        self.join()

    def wait_out(self) -> None:
        """Waits for the end of a fault that has begun."""
        self.attempted.set()
        if self.times:
            self.join()


class Drill:
    """Runs faults one after the other on one stack; each starts from where the one before left it, in order."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.shop = stack, Shop(stack)
        self.processes: ForkServerContext = pipeline.server()
        self.process: BaseProcess | None = None

    def open(self) -> None:
        """The first night, which puts a version live; then the load balancer's address answers."""
        self.shop.open()
        seen = Seen("the first night", "")
        self._until_done("night", "first-night", seen)
        if not seen.broken:
            self._forget_changes("first-night")
        seen.broken += self.shop.disagreements(self._newest())
        if seen.broken:
            raise RuntimeError(f"nothing is live to begin with: {seen.broken} {seen.errors}")

    def meet(self, fault: Fault) -> Seen:
        """Changes the shop, starts the hour and searches, brings the fault about, ends it, and looks at everything."""
        seen = Seen(fault.name, fault.promised)
        self.shop.change()
        key = f"{fault.story}-{self.shop.hour}"
        happening = Happening(self, fault, self._log(key), seen)
        with Load(self.stack.url, self.shop.searches(), CLIENTS, 3600.0, RATE, seed=self.shop.hour) as load:
            time.sleep(BEFORE_S)
            began = time.time()
            happening.start()
            self._until_done(fault.story, key, seen, happening)
            seen.live_after_s = round(time.time() - began, 1)
            happening.end()
            if fault.story == "night":
                self._forget_changes(key)
            time.sleep(BEFORE_S)
            shots = load.stop()
        self._judge_run(fault, seen, happening.times)
        self._judge_searches(fault, seen, shots, happening.times)
        seen.broken += self.shop.disagreements(self._newest(), features=fault.part != "Redis")
        return seen

    def _forget_changes(self, night: str) -> None:
        """The hour after a night finds that it has these changes, and takes them out of the queue."""
        seen = Seen(night, "")
        self._until_done("hour", f"{night}-after", seen)
        if seen.broken:
            raise RuntimeError(f"the hour after {night}: {seen.broken}")

    def _until_done(self, story: str, key: str, seen: Seen, happening: Happening | None = None) -> None:
        """Attempts one after the other, a further one once the fault is over, until all steps are done."""
        log, run_key = self._log(key), key
        while seen.attempts < 6:
            seen.attempts += 1
            arguments = (self.stack.environment, story, run_key, str(log))
            self.process = self.processes.Process(target=pipeline.run, args=arguments)
            self.process.start()
            self.process.join(HOUR_S)
            if self.process.exitcode == 0:
                return
            if self.process.exitcode is None:
                seen.broken.append(f"attempt {seen.attempts} hangs after {HOUR_S:.0f} s")
                self.process.kill()
                self.process.join()
            seen.errors.append("killed" if self.process.exitcode == -9 else last_line(log))
            if self.process.exitcode == pipeline.FINAL:  # the next hour, or a person, begins anew
                run_key, seen.anew = f"{key}-{seen.attempts}", seen.anew + 1
                story = "promotion" if "did publish_candidate" in log.read_text(errors="replace") else story
            if happening is not None:
                happening.wait_out()
            time.sleep(2)
        seen.broken.append(f"not done: {seen.errors[-1]}")

    def _log(self, key: str) -> Path:
        return self.stack.folder / "logs" / f"{key}.log"

    @staticmethod
    def _judge_run(fault: Fault, seen: Seen, times: list[float]) -> None:
        if not times:
            seen.broken.append(f"the fault never began: {fault.step} was not done")
        if seen.attempts > fault.attempts:
            seen.broken.append(f"{seen.attempts} attempts")
        if seen.anew:
            seen.broken.append(f"{seen.anew} attempts ended with what Airflow does not try again")

    def _judge_searches(self, fault: Fault, seen: Seen, shots: Shots, times: list[float]) -> None:
        begun, ended = times or (0.0, 0.0)
        during = (shots.at_s + shots.took_ms / 1e3 >= begun) & (shots.at_s <= ended + AWAY_S)
        seen.searches, seen.failed = len(shots.status), int((~shots.ok & during).sum())
        seen.failed_after = int((~shots.ok & ~during).sum())
        seen.partial = int((shots.ok & (shots.shards < shots.shards.max())).sum())
        seen.slowest_ms = round(shots.ms(100), 0)
        if seen.failed and fault.answers:
            seen.broken.append(f"{seen.failed} searches failed: {sorted(set(shots.status[~shots.ok].tolist()))}")
        if seen.failed_after:
            seen.broken.append(f"{seen.failed_after} searches failed before or after it")
        if seen.slowest_ms > fault.slowest_ms:
            seen.broken.append(f"an answer took {seen.slowest_ms:.0f} ms")
        told = set(shots.version[shots.ok].tolist())
        passed = {v.version for v in self.stack.direct.versions("product-index") if "live_at" in v.tags}
        if told - passed:
            seen.broken.append(f"answers of versions that never went live: {told - passed}")
        if mixed := mixed_answers(shots):
            seen.broken.append(f"{mixed} requests got different answers of one version")

    def _newest(self) -> str:
        return self.stack.direct.versions("product-index")[0].version


def mixed_answers(shots: Shots) -> int:
    """How many pairs of a request and a version had more than one answer, among those of all shards: an answer of fewer says so."""
    whole = shots.ok & (shots.shards == shots.shards.max())
    told = {*zip(shots.request[whole].tolist(), shots.version[whole].tolist(), shots.digest[whole].tolist(), strict=True)}
    pairs = [(request, version) for request, version, _ in told]
    return len(pairs) - len(set(pairs))


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(pipeline.FAILED)]
    return lines[-1][:300] if lines else "ended without a word"
