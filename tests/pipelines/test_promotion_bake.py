"""A bake that is tried again carries out what was decided: it neither judges twice nor goes back twice."""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from tasks.errors import ServiceAway, VitrineError
from tasks.pipelines import promotion_bake
from tasks.pipelines.promotion_bake import BAKE, KEPT, UNDER_WAY, run_bake
from tasks.registry import Version
from tasks.release.gates.index_gates import Decision
from tasks.release.promotion.bake import Reading
from tasks.release.promotion.blue_green import LeasedAliases
from tasks.settings import Settings
from tests.release.promotion.test_blue_green import Aliases, Following, promote


@dataclass
class Registry(Aliases):
    def version(self, model: str, version: str) -> Version:
        return Version(model, version, "run", dict(self.tags.get(version, {})), (), "", 0)


class Lease:
    def check(self) -> None:
        """It is held."""


class Lagging(Following):
    """A replica that serves version 2 as long as it lags."""

    lags = False

    def poll_aliases(self, again: str = "") -> None:
        """It follows by itself."""

    def version(self) -> dict:
        return super().version() | ({"live": {"version": "2"}} if Lagging.lags else {})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Version 2 went live after version 1, and its bake is under way; a bake finds it too slow."""
    made = Registry()
    for version in ("1", "2"):
        promote(made, [Lagging(made)], version)
    made.tags["2"][BAKE] = f"{UNDER_WAY}, by a test"
    monkeypatch.setattr(promotion_bake, "replicas_of", lambda chosen: [Lagging(made)])
    monkeypatch.setattr(promotion_bake, "bake", lambda *_: Decision(False, ("p99 900 ms",)))
    monkeypatch.setattr(promotion_bake, "FLIP_LIMIT_S", 0.0)
    return made


def decide(registry: Any) -> Decision:
    return run_bake(registry, LeasedAliases(registry, Lease()), Settings(), "2", [Reading()])  # type: ignore[arg-type]


def test_a_rollback_that_a_replica_did_not_follow_is_not_undone_by_the_next_try(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Lagging, "lags", True)
        with pytest.raises(ServiceAway, match="still serves version 2"):
            decide(registry)
        assert registry.held["live"] == "1"
    monkeypatch.setattr(promotion_bake, "bake", lambda *_: pytest.fail("it was judged already"))
    decision = decide(registry)
    assert not decision.passed
    assert decision.summary == "version 2 was rolled back and version 1 is live again: p99 900 ms"
    assert (registry.held["live"], registry.held["previous"]) == ("1", "2")


@pytest.mark.parametrize("writes", range(8))
def test_a_bake_killed_at_any_write_ends_the_same_when_it_is_tried_again(registry: Registry, writes: int) -> None:
    registry.dies_after = registry.sets + writes
    with contextlib.suppress(KeyboardInterrupt):
        decide(registry)
    registry.dies_after = 10**9
    decision = decide(registry)
    assert not decision.passed
    assert (registry.held["live"], registry.held["previous"]) == ("1", "2")
    assert registry.tags["2"]["verdict"] == "failed: after it went live, p99 900 ms"
    assert registry.tags["2"][BAKE] == "rolled back: p99 900 ms"


def test_a_version_that_was_kept_is_not_judged_again(registry: Registry) -> None:
    registry.tags["2"][BAKE] = f"{KEPT}: p99 20 ms"
    assert decide(registry) == Decision(True, ("version 2 stays live: p99 20 ms",))


def test_a_bake_of_what_is_not_live_any_more_leaves_what_is(registry: Registry) -> None:
    promote(registry, [Lagging(registry)], "3")
    with pytest.raises(VitrineError, match=r"version 2 is not live any more \(version 3 is\): its bake is over"):
        decide(registry)
    assert registry.held["live"] == "3"


def test_metrics_of_before_the_flip_outlive_the_attempt_that_read_them(registry: Registry) -> None:
    read = [Reading(100.0, 2.0, {0.1: 90.0, 0.2: 0.0}, 5.0, 4.5, "1", "http://a"), Reading(url="http://b")]
    promotion_bake.keep_metrics(LeasedAliases(registry, Lease()), "2", "epoch", read)  # type: ignore[arg-type]
    found = registry.version("product-index", "2")
    assert promotion_bake.kept_metrics(found, "epoch") == [dataclasses.replace(read[0], buckets={0.1: 90.0}), read[1]]
    assert promotion_bake.kept_metrics(found, "of a rollback since") == []
    assert promotion_bake.kept_metrics(registry.version("product-index", "1"), "") == []


def test_a_replica_is_compared_with_its_own_reading_however_many_there_are_by_now(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a name of several addresses there may be other replicas at the bake than there were at the flip."""
    starts: list[list[float]] = []
    replicas = [Lagging(registry, "http://new"), Lagging(registry, "http://a"), Lagging(registry, "http://silent")]
    monkeypatch.setattr(promotion_bake, "replicas_of", lambda chosen: replicas)
    now = {"http://new": Reading(7.0, url="http://new"), "http://a": Reading(900.0, url="http://a")}
    monkeypatch.setattr(promotion_bake, "take_reading", lambda replica, version: now.get(replica.url))
    keep = Decision(True, ("fine",))
    monkeypatch.setattr(promotion_bake, "bake", lambda *given: starts.append([r.searches for r in given[2]]) or keep)
    before = [Reading(100.0, url="http://a"), Reading(50.0, url="http://gone")]
    run_bake(registry, LeasedAliases(registry, Lease()), Settings(), "2", before)  # type: ignore[arg-type]
    assert starts == [[7.0, 100.0, 0.0]]
