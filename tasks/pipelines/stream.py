"""The stream: refresh_index and promotion in a loop, in one long-running process.

A round that was interrupted, by SIGTERM or SIGKILL, goes on under its old key when the process starts again, so it makes the same
version. What is away (MLflow, the queue, a replica) is waited for.
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
from typing import Any

from serving.contract.files import ContractError, atomic_write
from tasks import storage
from tasks.errors import VitrineError
from tasks.pipelines import drain_changes, promote_index, publish_features, refresh_index
from tasks.pipelines.common import settings

log = logging.getLogger(__name__)

PHOTOS = 200
"""Held-out photos that the gates ask in a round; the nightly version asks all."""
BAKE_S = 5.0
"""How long a version is watched after its flip before the next round may follow."""
POLL_S = 20.0
"""Longest wait for a first change, so that the process notices that it should stop."""
LONGEST_PAUSE_S = 60.0
WORDS = 160
"""As much of a foreign error's first line as a person reads."""
ATTEMPTS = 5
"""How often one round is tried before its messages are left to a new one."""


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
            except Exception as error:  # whatever is away or refuses, the stream stays and tries again
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
        if not plan["due"]:
            state.key = ""
            if plan.get("note"):
                self.say(plan["note"])
            if state.pending:
                self._promote(state)
            return False
        done("drain")
        self._refresh_features(plan)
        embedded = refresh_index.embed(plan)
        done("embed")
        registered = refresh_index.register(plan, embedded, PHOTOS)
        done("register")
        refresh_index.acknowledge(plan, registered, embedded)
        if not registered["passed"]:
            self._clear(plan)
            state.key = ""
            refresh_index.require_passed(registered)
        done("acknowledge")
        published = refresh_index.publish(registered)
        state.pending = registered["version"] if published and self.promote else ""
        live = ("is live" if self.promote else "is the candidate") if published else "is left to the next round"
        self._clear(plan)
        state.key = ""
        self._write(state)
        self._promote(state)
        done("promote")
        took = ", ".join(f"{step} {at - before:.1f} s" for (_, before), (step, at) in pairwise(marks))
        self.say(f"version {registered['version']} {live}: {plan['summary']} ({took})")
        if embedded.get("note"):
            self.say(embedded["note"])
        if registered["compaction_due"]:
            self.say(f"a rebuild is due: {registered['compaction_due']}; run the DAG rebuild_index")
        return True

    def _refresh_features(self, plan: dict[str, Any]) -> None:
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
        pause = min(2.0**state.failures, LONGEST_PAUSE_S)
        expected = isinstance(error, VitrineError | ContractError)
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.say(f"{words if expected else f'{type(error).__name__}: {words[:WORDS]}'}; trying again in {pause:.0f} s")
        if not expected:
            log.info("round %s", state.key, exc_info=error)
        if expected and state.failures >= ATTEMPTS and state.key:  # an outage passes, and the round with it
            self.say("this round is given up; its changes are still in the queue")
            state.key = ""
        self.stop.wait(pause)

    def _clear(self, plan: dict[str, Any]) -> None:
        """Deletes the round's intermediate files."""
        shutil.rmtree(settings().home / "work" / plan["run_key"], ignore_errors=True)
        for uri in reversed(storage.list_files(plan["uri"])):
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
    return settings().home / "work" / "stream" / "round.json"
