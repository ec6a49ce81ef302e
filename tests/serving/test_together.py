"""Searches carried through their phases together: each gets its own results, one call is made for several, failures stay apart."""

import os
import random
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

from serving import logs
from serving.together import Search, Searching, together
from serving.workers import Workers, cores_of
from tests.running import until

CALLS: list[tuple[str, int]] = []
WHO: ContextVar[str] = ContextVar("who")


@dataclass
class Twice:
    """A step that doubles numbers; a negative one fails for all that are done with it."""

    kind: str
    number: int

    @property
    def alike(self) -> Hashable:
        return self.kind

    def run(self, steps: "list[Twice]") -> list[int]:
        CALLS.append((self.kind, len(steps)))
        if any(s.number < 0 for s in steps):
            raise RuntimeError("a negative number")
        return [2 * s.number for s in steps]


def search(number: int, *kinds: str) -> Any:
    """Doubles a number once for each kind of step; its answer is told as a pair with who asked."""
    for kind in kinds:
        number = yield Twice(kind, number)
    return WHO.get("nobody"), number


def begun(steps: Searching, who: str = "nobody") -> Search:
    context = copy_context()
    context.run(WHO.set, who)
    return Search(steps, context, Future())  # type: ignore[arg-type]


def test_steps_that_are_alike_are_one_call_and_each_search_gets_its_own() -> None:
    CALLS.clear()
    searches = [begun(search(n, "encode", "retrieve"), str(n)) for n in (1, 2, 3)] + [begun(search(10, "retrieve"), "v")]
    together(searches)
    assert [s.answer for s in searches] == [("1", 4), ("2", 8), ("3", 12), ("v", 20)]
    assert CALLS == [("encode", 3), ("retrieve", 4)]


class Heard:
    """A step that tells for which requests it runs."""

    alike = "heard"

    def run(self, steps: "list[Heard]") -> list[str]:
        return [logs.request_id.get()] * len(steps)


def test_what_is_done_for_several_searches_knows_all_their_requests() -> None:
    def hearing() -> Any:
        return (yield Heard())

    searches = [begun(hearing()) for _ in range(3)]
    for number, one in enumerate(searches):
        one.context.run(logs.request_id.set, f"id-{number}")
    together(searches)
    assert {s.answer for s in searches} == {"id-0,id-1,id-2"}
    alone = begun(hearing())
    alone.context.run(logs.request_id.set, "id-4")
    together([alone])
    assert alone.answer == "id-4"
    assert logs.request_id.get() == ""


def test_a_search_without_steps_is_over_at_once() -> None:
    one = begun(search(7))
    together([one])
    assert (one.answer, one.error, one.wants) == (("nobody", 7), None, None)


def test_a_search_that_fails_leaves_the_others_alone() -> None:
    def broken() -> Any:
        yield Twice("encode", 1)
        raise ValueError("mine alone")

    searches = [begun(search(1, "encode")), begun(broken())]
    together(searches)
    assert searches[0].answer == ("nobody", 2)
    assert str(searches[1].error) == "mine alone"


def test_a_step_that_fails_is_raised_in_every_search_that_it_was_done_for_and_one_may_go_on() -> None:
    def forgiving() -> Any:
        try:
            yield Twice("encode", -1)
        except RuntimeError:
            return "went on"

    searches = [begun(forgiving()), begun(search(1, "encode")), begun(search(1, "retrieve"))]
    together(searches)
    assert searches[0].answer == "went on"
    assert str(searches[1].error) == "a negative number"
    assert searches[2].answer == ("nobody", 2)


class Desk:
    """Keeps what workers say is over, by batch."""

    def __init__(self) -> None:
        self.batches: list[list[Search]] = []

    def __call__(self, searches: list[Search]) -> None:
        self.batches.append(searches)

    @property
    def answered(self) -> int:
        return sum(len(b) for b in self.batches)


def held(go: threading.Event) -> Any:
    go.wait(20)
    return "held"
    yield


def came_while_busy(count: int, most: int, searches: int) -> Desk:
    """What `count` workers made of searches that came while each was held by one."""
    go, desk = threading.Event(), Desk()
    workers = Workers(count, most, desk)
    for _ in range(count):
        workers.submit(begun(held(go)))
    until(lambda: not workers.waiting)
    for n in range(searches):
        workers.submit(begun(search(n, "encode")))
    go.set()
    until(lambda: desk.answered == count + searches)
    workers.close()
    return desk


def test_those_who_come_while_a_worker_is_busy_are_taken_together_up_to_the_most() -> None:
    desk = came_while_busy(1, 4, 6)
    assert [len(b) for b in desk.batches] == [1, 4, 2]
    assert [s.answer for b in desk.batches[1:] for s in b] == [("nobody", 2 * n) for n in range(6)]


def test_a_worker_takes_no_more_than_its_share() -> None:
    desk = came_while_busy(2, 8, 4)
    assert max(len(b) for b in desk.batches) == 2


def test_workers_that_are_closed_begin_nothing_more() -> None:
    go, desk = threading.Event(), Desk()
    workers = Workers(1, 4, desk)
    workers.submit(begun(held(go)))
    until(lambda: not workers.waiting)
    workers.submit(begun(search(1, "encode")))
    workers.close()
    go.set()
    until(lambda: not workers.threads[0].is_alive())
    assert desk.answered == 1


def test_workers_that_rest_end_when_they_are_closed() -> None:
    desk = Desk()
    workers = Workers(3, 4, desk)
    for n in range(3):
        workers.submit(begun(search(n, "encode")))
    until(lambda: desk.answered == 3)
    workers.close()
    until(lambda: not any(t.is_alive() for t in workers.threads))


def test_of_several_idle_workers_the_one_that_was_busy_last_is_woken() -> None:
    go, desk = threading.Event(), Desk()
    workers = Workers(3, 4, desk)
    for _ in range(3):
        workers.submit(begun(held(go)))
    until(lambda: not workers.waiting)
    go.set()
    until(lambda: len(workers.idle) == 3)
    names: list[str] = []

    def named() -> Any:
        names.append(threading.current_thread().name)
        return "named"
        yield

    for n in range(20):
        workers.submit(begun(named()))
        until(lambda n=n: len(names) == n + 1 and len(workers.idle) == 3)
    assert len(set(names)) == 1
    workers.close()


def test_a_search_that_comes_as_a_worker_goes_to_rest_is_not_forgotten() -> None:
    desk, chance = Desk(), random.Random(1)
    workers = Workers(2, 4, desk)
    for n in range(3000):
        workers.submit(begun(search(n, "encode")))
        if chance.random() < 0.5:
            time.sleep(chance.random() * 1e-4)
    until(lambda: desk.answered == 3000)
    assert not workers.waiting
    workers.close()


def test_workers_share_the_cores_where_there_is_one_for_each() -> None:
    cores = os.sched_getaffinity(os.getpid())
    shares = [cores_of(n, len(cores)) for n in range(len(cores))]
    assert all(len(s) == 1 for s in shares)
    assert set.union(*shares) == cores
    assert set.union(cores_of(0, 2), cores_of(1, 2)) == cores
    assert cores_of(0, 1) == cores
    assert cores_of(5, len(cores) + 1) == cores
    go = threading.Event()
    workers = Workers(2, 4, Desk())
    for _ in range(2):
        workers.submit(begun(held(go)))
    until(lambda: not workers.waiting)
    assert [os.sched_getaffinity(t.native_id or 0) for t in workers.threads] == [cores_of(0, 2), cores_of(1, 2)]
    assert os.sched_getaffinity(os.getpid()) == cores
    go.set()
    workers.close()


def test_many_searches_on_several_workers_each_get_their_own() -> None:
    desk = Desk()
    workers = Workers(4, 8, desk)
    searches = [begun(search(n, "encode", "retrieve")) for n in range(500)]
    for one in searches:
        workers.submit(one)
    until(lambda: desk.answered == 500)
    assert [s.answer for s in searches] == [("nobody", 4 * n) for n in range(500)]
    workers.close()
