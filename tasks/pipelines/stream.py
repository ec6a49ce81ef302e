"""The stream: refresh_index and promotion in a loop, in one long-running process.

A round that was interrupted by SIGTERM or SIGKILL resumes under its key at the next start, so it makes the same version. While a
service (MLflow, the queue, a replica) is unavailable, it retries with exponential backoff.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from threading import Event

from serving.contract.addresses import error_line
from serving.contract.files import ContractError, atomic_write
from tasks import storage
from tasks.errors import GateFailed, VitrineError
from tasks.pipelines import drain_changes, promote_index, publish_features, refresh_index
from tasks.pipelines.common import settings
from tasks.pipelines.index_records import RefreshPlan
from tasks.worker_disk import WORK

log = logging.getLogger(__name__)

PHOTOS = 200
"""Held-out photos that the gates of a round search with; those of a nightly version use all."""
BAKE_S = 5.0
"""Duration of the bake in a round."""
POLL_S = 20.0
"""Longest wait for a first change, so that a request to stop is noticed."""
LONGEST_PAUSE_S = 60.0
MAX_MESSAGE_LENGTH = 160
"""Characters shown of the first line of an unexpected error."""
ATTEMPTS = 5
"""Attempts of one round before its messages are left to a new one."""


@dataclass
class Round:
    """State persisted between rounds: the round's key, the version pending promotion, and the number of failures."""

    key: str = ""
    pending: str = ""
    failures: int = 0


class StopRequested(Exception):
    """The process was asked to stop; the round resumes at the next start."""


@dataclass
class Stream:
    """Rounds at most every `every_s` seconds until `stop` is set. `say` receives a sentence per event."""

    every_s: float
    stop: Event
    say: Callable[[str], None]
    promote: bool = True

    def run(self, rounds: int = 0) -> None:
        """Runs until stopped, or for `rounds` rounds that made a version (0: forever)."""
        made = 0
        state = self._read()
        while not self.stop.is_set() and (not rounds or made < rounds):
            began, worked = time.monotonic(), False
            try:
                worked = self._round(state)
                made += worked
                state.failures = 0
            except StopRequested:
                break
            except Exception as error:  # whatever fails, the stream goes on and retries
                self._handle_error(state, error)
                continue
            finally:
                self._write(state)
            if worked:  # a round without changes has waited for them already
                self.stop.wait(max(0.0, began + self.every_s - time.monotonic()))
        self.say("stopped; what was begun goes on at the next start" if state.key else "stopped")

    def _round(self, state: Round) -> bool:
        """One round; returns whether it made a version."""
        if not state.key:
            state.key = f"stream.{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}"
            self._write(state)
        marks = [("", time.monotonic())]

        def done(step: str) -> None:
            marks.append((step, time.monotonic()))
            self._log_step(state, step)
            if self.stop.is_set() and step != "promote":
                raise StopRequested

        plan = drain_changes.drain(state.key, wait_s=0 if state.pending else min(self.every_s, POLL_S))
        if not plan.due:
            state.key = ""
            if plan.note:
                self.say(plan.note)
            if state.pending:
                self._promote(state)
            return False
        done("drain")
        self._refresh_features(plan)
        embedded = refresh_index.embed(plan)
        done("embed")
        registered = refresh_index.register(plan, embedded, PHOTOS)
        done("register")
        try:
            refresh_index.acknowledge(plan, registered, embedded)
        except GateFailed:
            self._clear(plan)
            state.key = ""
            raise
        done("acknowledge")
        published = refresh_index.publish(registered)
        state.pending = registered.version if published and self.promote else ""
        live = ("is live" if self.promote else "is the candidate") if published else "is left to the next round"
        self._clear(plan)
        state.key = ""
        self._write(state)
        self._promote(state)
        done("promote")
        took = ", ".join(f"{step} {at - before:.1f} s" for (_, before), (step, at) in pairwise(marks))
        self.say(f"version {registered.version} {live}: {plan.summary} ({took})")
        if embedded.note:
            self.say(embedded.note)
        if registered.compaction_due:
            self.say(f"a rebuild is due: {registered.compaction_due}; run the DAG rebuild_index")
        return True

    def _refresh_features(self, plan: RefreshPlan) -> None:
        """Updates price, stock and popularity first; an unavailable feature store does not block the round."""
        from redis import RedisError

        try:
            publish_features.refresh(plan)
        except (VitrineError, RedisError) as error:
            self.say(f"features are not refreshed: {error}")

    def _promote(self, state: Round) -> None:
        if state.pending and self.promote:
            promote_index.promote(state.pending, f"stream {state.pending}", BAKE_S)
        state.pending = ""

    def _handle_error(self, state: Round, error: Exception) -> None:
        """Reports an error and backs off exponentially; gives a round up after ATTEMPTS."""
        state.failures += 1
        pause = min(2.0 ** min(state.failures, 10), LONGEST_PAUSE_S)  # an outage of days is no number too large
        expected = isinstance(error, VitrineError | ContractError)
        words = error_line(error, 10_000)
        self.say(
            f"{words if expected else f'{type(error).__name__}: {words[:MAX_MESSAGE_LENGTH]}'}; trying again in {pause:.0f} s"
        )
        if not expected:
            log.info("round %s", state.key, exc_info=error)
        if expected and state.failures >= ATTEMPTS and state.key:  # an outage passes, and the round with it
            self.say("this round is given up; its changes are still in the queue")
            state.key = ""
        self.stop.wait(pause)

    def _clear(self, plan: RefreshPlan) -> None:
        """Deletes the round's intermediate files."""
        for folder in (settings().home / WORK).glob(f"{plan.run_key}.*"):
            shutil.rmtree(folder, ignore_errors=True)
        for uri in reversed(storage.list_files(plan.uri)):
            storage.delete(uri)

    def _log_step(self, state: Round, step: str) -> None:
        log.info("round %s: %s done", state.key, step)

    def _read(self) -> Round:
        path = _place()
        return Round(**json.loads(path.read_text())) if path.is_file() else Round()

    def _write(self, state: Round) -> None:
        with atomic_write(_place()) as path:
            path.write_text(json.dumps(asdict(state)))


def _place() -> Path:
    return settings().home / WORK / "stream" / "round.json"
