"""Which connection makes room: a model of random connections that come, ask, fall silent and go."""

import random

import pytest

from serving.api.open_connections import HEALTH_RESERVE, OpenConnections


class Connection:
    def __init__(self, address: str) -> None:
        self.address, self.only_health, self.closed = address, False, False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_and_goes_limits_hold_and_none_at_work_is_closed(seed: int) -> None:
    chance, here, busy = random.Random(seed), OpenConnections(12, 0.5, ("10.0.0.0/30",)), set[Connection]()
    known: list[Connection] = []
    for _ in range(4000):
        one = chance.choice(known) if known and chance.random() < 0.6 else None
        if one is None:
            one = Connection(chance.choice(["a", "b", "c", "10.0.0.1", "10.0.0.2"]))
            if here.admit(one):
                known.append(one)
        elif one in busy:
            busy.discard(one)
            here.fell_silent(one)
        elif chance.random() < 0.8:
            busy.add(one)
            here.at_work(one)
        else:
            one.closed = True
            here.leave(one)
        assert not any(c.closed for c in busy)
        known = [c for c in known if not c.closed]
        ordinary = [c for c in known if not c.only_health]
        assert here.ordinary == set(ordinary)
        assert len(ordinary) <= 12
        assert len(known) - len(ordinary) <= HEALTH_RESERVE
        assert all(sum(c.address == address for c in ordinary) <= 6 for address in "abc")
        assert set(here.silent) == set(ordinary) - busy
    for one in known:
        here.leave(one)
        here.leave(one)
    left = (here.ordinary, here.reserve, here.by_address, here.silent, here.silent_by_address, here.silent_reserve)
    assert not any(left)


def test_the_one_that_is_silent_longest_goes_first() -> None:
    here = OpenConnections(3)
    first, second, third, fourth, fifth = (Connection("a") for _ in range(5))
    for one in (first, second, third):
        here.admit(one)
    here.at_work(first)
    here.fell_silent(first)
    assert here.admit(fourth)
    assert [c.closed for c in (first, second, third)] == [False, True, False]
    assert here.admit(fifth)
    assert [c.closed for c in (first, third)] == [False, True]
    assert not fifth.only_health
