"""One promotion at a time, whoever asks, and whatever was killed: over tags in memory, with threads and a clock of our own."""

import random
import threading
import time
from dataclasses import dataclass, field

import pytest

from tasks.release.promotion.lease import (
    HANDOVER_S,
    INTENT_PREFIX,
    LASTS_S,
    Lease,
    LeaseBusy,
    LeaseExpired,
    LeaseLost,
    acquire,
    hold_lease,
    read_intents,
)


@dataclass
class Tags:
    """A registered model's tags: each call is atomic, and between two calls anything may happen."""

    held: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    slow: bool = False

    def model_tags(self, model: str) -> dict[str, str]:
        self._wait()
        with self.lock:
            return dict(self.held)

    def set_model_tag(self, model: str, tag: str, value: str) -> None:
        self._wait()
        with self.lock:
            self.held[tag] = value
        self._wait()

    def delete_model_tag(self, model: str, tag: str) -> None:
        with self.lock:
            self.held.pop(tag, None)

    def _wait(self) -> None:
        if self.slow:
            time.sleep(random.random() / 500)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def taken(tags: Tags, clock: Clock, holder: str, **options: object) -> Lease:
    return acquire(tags, holder, clock=clock, pause=clock.pause, **options)  # type: ignore[arg-type]


def test_the_second_is_told_who_is_first_and_goes_on_when_they_are_done() -> None:
    tags, clock = Tags(), Clock()
    first = taken(tags, clock, "promote_index run 1")
    with pytest.raises(LeaseBusy, match=r"promote_index run 1 promotes right now .* wait for it, or roll back"):
        taken(tags, clock, "vitrine stream")
    first.check()
    first.release()
    taken(tags, clock, "vitrine stream").check()
    with pytest.raises(LeaseLost, match="released its lease"):
        first.check()


def test_a_killed_holder_blocks_nobody_for_longer_than_a_lease_lasts() -> None:
    tags, clock = Tags(), Clock()
    taken(tags, clock, "killed")
    second = taken(tags, clock, "second", patience_s=LASTS_S + 5)
    assert clock.now <= 1000 + LASTS_S + 5
    second.check()


def test_who_slept_too_long_knows_it_by_their_own_clock() -> None:
    tags, clock = Tags(), Clock()
    sleepy = taken(tags, clock, "sleepy")
    clock.now += LASTS_S + 1
    second = taken(tags, clock, "second")
    with pytest.raises(LeaseExpired, match="ran out"):
        sleepy.check()
    with pytest.raises(LeaseExpired, match="ran out"):
        sleepy.renew()
    second.check()


def test_the_same_holder_takes_its_own_back_at_once_while_others_ask() -> None:
    tags, clock = Tags(), Clock()
    taken(tags, clock, "run 1").renew(HANDOVER_S)
    clock.now += HANDOVER_S - 20
    with pytest.raises(LeaseBusy):
        taken(tags, clock, "run 2")
    taken(tags, clock, "run 1").check()


def test_a_rollback_waits_for_no_promotion_and_makes_it_void() -> None:
    tags, clock = Tags(), Clock()
    promotion = taken(tags, clock, "promotion")
    rollback = taken(tags, clock, "rollback", urgent=True)
    with pytest.raises(LeaseLost, match="promotion was cancelled by a rollback") as cancelled:
        promotion.check()
    assert not isinstance(cancelled.value, LeaseExpired), "nothing tries it again by itself"
    rollback.check()
    with pytest.raises(LeaseBusy, match="rollback rolls back right now"):
        taken(tags, clock, "another", urgent=True)
    rollback.release()
    taken(tags, clock, "after it").check()


def test_a_promotion_that_was_planned_before_a_rollback_cannot_go_on_later() -> None:
    tags, clock = Tags(), Clock()
    planned = taken(tags, clock, "promotion")
    planned.release()  # a person is asked
    taken(tags, clock, "rollback", urgent=True).release()
    with pytest.raises(LeaseLost, match="promotion was cancelled by a rollback after it was planned"):
        taken(tags, clock, "promotion", epoch=planned.epoch)
    assert read_intents(tags.held) == {}


def test_a_holder_sees_a_rollback_that_began_and_ended_meanwhile() -> None:
    tags, clock = Tags(), Clock()
    promotion = taken(tags, clock, "promotion")
    taken(tags, clock, "rollback", urgent=True).release()
    with pytest.raises(LeaseLost):
        promotion.renew()


def test_flags_nobody_can_read_and_flags_that_ran_out_stop_nobody() -> None:
    tags, clock = Tags(), Clock()
    tags.held |= {INTENT_PREFIX + "broken": "{", INTENT_PREFIX + "other": '{"a": 1}', "made_by": "vitrine"}
    taken(tags, clock, "old")
    clock.now += 10 * LASTS_S
    taken(tags, clock, "new").check()
    assert len(read_intents(tags.held)) == 1


def test_the_lease_is_kept_for_the_next_step_only_when_the_block_ended_well() -> None:
    tags = Tags()
    with hold_lease(tags, "run", keep_s=HANDOVER_S) as lease:
        lease.check()
    (flag,) = read_intents(tags.held).values()
    assert flag.until > time.time() + LASTS_S
    with pytest.raises(ValueError, match="a step fails"), hold_lease(tags, "run", keep_s=HANDOVER_S):
        raise ValueError("a step fails")
    assert read_intents(tags.held) == {}


def test_of_many_at_once_never_two_hold_it() -> None:
    """Eight threads take and give up as fast as they can; each write is allowed only to whoever holds the lease alone."""
    tags = Tags(slow=True)
    inside: list[str] = []
    most: list[int] = []
    done: list[str] = []
    ends = time.monotonic() + 300

    def work(name: str) -> None:
        for _ in range(4):
            while time.monotonic() < ends:
                try:
                    lease = acquire(tags, name, patience_s=60, pause=lambda _: time.sleep(random.random() / 50))
                except LeaseBusy:
                    continue
                lease.check()
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.002)
                inside.remove(name)
                lease.release()
                done.append(name)
                break

    threads = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(done) == 32
    assert read_intents(tags.held) == {}
