"""Mutual exclusion of promotions: a lease stored beside the aliases, as tags of the registered model.

MLflow has no compare-and-set, so acquiring writes an intent tag, reads all tags again, and backs off on conflict. Of two concurrent
attempts each sees the other's intent, because reads see all earlier writes. An intent expires, so a killed holder blocks others only
briefly; a suspended holder notices by its own clock that its lease is over. A rollback is urgent: it does not wait for promotions,
and cancels every promotion that began before it.
"""

import hashlib
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from tasks.errors import ServiceAway, VitrineError
from tasks.registry import INDEX_MODEL

log = logging.getLogger(__name__)

LASTS_S = 60.0
"""Validity of an intent without renewal: the longest wait after a holder was killed."""
MARGIN_S = 10.0
"""Safety margin before expiry, for clock differences and writes in flight."""
HANDOVER_S = 150.0
"""Validity of an intent between two tasks of one DAG run."""
PAUSE_S = (0.2, 1.0)
INTENT_PREFIX, EPOCH = "lease.", "lease-epoch"


class LeaseBusy(VitrineError):
    """Another holder is moving the aliases."""


class LeaseLost(VitrineError):
    """The lease expired, or a rollback cancelled this promotion."""


class LeaseExpired(LeaseLost, ServiceAway):
    """The holder, or the registry, was held up for so long that the lease ran out. Nobody cancelled it: the step may be tried again."""


class Tags(Protocol):
    """Tags of a registered model, with read-after-write consistency."""

    def model_tags(self, model: str) -> dict[str, str]: ...
    def set_model_tag(self, model: str, tag: str, value: str) -> None: ...
    def delete_model_tag(self, model: str, tag: str) -> None: ...


@dataclass(frozen=True)
class Intent:
    """A holder that wants the lease, or has it (`held`). `until` is epoch seconds."""

    holder: str
    until: float
    held: bool
    urgent: bool = False

    def describe(self, now: float) -> str:
        doing = "rolls back" if self.urgent else "promotes"
        return f"{self.holder} {doing} right now (its lease ends in {max(self.until - now, 0):.0f} s unless it is renewed)"


class Lease:
    """The lease of one holder, valid while `check` passes. `epoch` identifies the last rollback at its acquisition."""

    def __init__(self, tags: Tags, holder: str, urgent: bool, clock: Callable[[], float]) -> None:
        self.tags, self.holder, self.urgent, self.clock = tags, holder, urgent, clock
        self.key = INTENT_PREFIX + hashlib.sha256(holder.encode()).hexdigest()[:16]
        self.epoch = ""
        self.until = 0.0
        self.void = ""
        self.expired = False
        self.lock = threading.Lock()

    def check(self) -> None:
        """Raises LeaseLost unless the lease is valid. Reads the registry; call it right before each write."""
        if not self.void and self.clock() > self.until - MARGIN_S:
            self.expired = True
            self.void = f"the lease of {self.holder} ran out before it was renewed; run it again"
        if not self.void and not self.urgent:
            found = self.tags.model_tags(INDEX_MODEL)
            rivals = [f for key, f in read_intents(found).items() if key != self.key and f.urgent and f.until > self.clock()]
            if rivals or found.get(EPOCH, "") != self.epoch:
                by = rivals[0].holder if rivals else "somebody"
                self.void = f"{self.holder} was cancelled by a rollback ({by}); check which version is live, then run it again"
        if self.void:
            raise (LeaseExpired if self.expired else LeaseLost)(self.void)

    def renew(self, lasts_s: float = 0.0) -> None:
        """Extends the lease. Raises LeaseLost when it is no longer valid."""
        with self.lock:
            self.check()
            self._write_intent(held=True, lasts_s=lasts_s)

    def still_held(self) -> bool:
        """Whether this holder's intent of an earlier step is still valid, so that the lease is only taken over."""
        mine = read_intents(self.tags.model_tags(INDEX_MODEL)).get(self.key)
        return mine is not None and mine.held and mine.until - MARGIN_S > self.clock()

    def release(self) -> None:
        """Deletes the intent tag, so that others may acquire."""
        with self.lock:
            self.void = self.void or f"{self.holder} released its lease"
            self.tags.delete_model_tag(INDEX_MODEL, self.key)

    def _write_intent(self, held: bool, lasts_s: float = 0.0) -> None:
        until = self.clock() + (lasts_s or LASTS_S)
        intent = Intent(self.holder, until, held, self.urgent)
        self.tags.set_model_tag(INDEX_MODEL, self.key, json.dumps(asdict(intent)))
        self.until = until


def acquire(
    tags: Tags, holder: str, urgent: bool = False, epoch: str | None = None, patience_s: float = 0.0,
    clock: Callable[[], float] = time.time, pause: Callable[[float], None] = time.sleep,
) -> Lease:  # fmt: skip
    """Acquires the lease once no other holder has or wants it; a holder of the same name takes over its own at once.

    `urgent` waits only for others that are urgent, and cancels every promotion that began before. `epoch`: the one that a plan
    was made under; LeaseLost when there was a rollback since. Raises LeaseBusy naming the holder after `patience_s` seconds.
    """
    lease = Lease(tags, holder, urgent, clock)
    gives_up = clock() + patience_s
    while True:
        kept = lease.still_held()  # others that only want the lease see this intent and back off
        lease._write_intent(held=kept)
        found = tags.model_tags(INDEX_MODEL)
        others = {key: intent for key, intent in read_intents(found).items() if key != lease.key}
        alive = [f for f in others.values() if f.until > clock()]
        rivals = [f for f in alive if f.urgent or not (urgent or (kept and not f.held))]
        if not rivals:
            return _complete(lease, found, others, epoch)
        tags.delete_model_tag(INDEX_MODEL, lease.key)
        if clock() >= gives_up:
            raise LeaseBusy(f"{rivals[0].describe(clock())}; wait for it, or roll back, which does not wait")
        pause(random.uniform(*PAUSE_S))


def _complete(lease: Lease, found: dict[str, str], others: dict[str, Intent], epoch: str | None) -> Lease:
    """Completes the acquisition: checks the epoch and deletes expired intents."""
    lease.epoch = found.get(EPOCH, "")
    if epoch is not None and epoch != lease.epoch:
        lease.release()
        raise LeaseLost(
            f"{lease.holder} was cancelled by a rollback after it was planned; check which version is live, then run it again"
        )
    if lease.urgent:
        lease.epoch = uuid.uuid4().hex
        lease.tags.set_model_tag(INDEX_MODEL, EPOCH, lease.epoch)
    for key, intent in others.items():
        if intent.until + MARGIN_S < lease.clock() or (lease.urgent and not intent.urgent):
            lease.tags.delete_model_tag(INDEX_MODEL, key)
    lease.renew()
    return lease


@contextmanager
def hold_lease(
    tags: Tags, holder: str, urgent: bool = False, epoch: str | None = None, patience_s: float = 0.0, keep_s: float = 0.0
) -> Iterator[Lease]:
    """The lease within the block, renewed in the background.

    Given up at its end; or, where the block ends well and `keep_s` is given, kept that long for the same holder's next step.
    """
    lease = acquire(tags, holder, urgent, epoch, patience_s)
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(LASTS_S / 4):
            try:
                lease.renew()
            except VitrineError:
                return
            except Exception as error:  # the registry may be away for a moment; our own clock decides how long
                log.warning("the lease of %s could not be renewed: %s", holder, error)

    keeper = threading.Thread(target=keep_alive, name="lease", daemon=True)
    keeper.start()
    ended_well = False
    try:
        yield lease
        ended_well = True
    finally:
        done.set()
        keeper.join(LASTS_S)
        try:
            if ended_well and keep_s and not lease.void:
                lease.renew(keep_s)
            else:
                lease.release()
        except Exception as error:  # it runs out by itself; what ended the block matters more
            log.warning("the lease of %s could not be released: %s", holder, error)


def read_intents(found: dict[str, str]) -> dict[str, Intent]:
    """The intents among a model's tags; malformed ones are ignored."""
    raised: dict[str, Intent] = {}
    for key, value in found.items():
        if key.startswith(INTENT_PREFIX):
            try:
                raised[key] = Intent(**json.loads(value))
            except (ValueError, TypeError):
                continue
    return raised
