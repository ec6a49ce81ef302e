"""Blue-green over hand-written aliases and real replicas' words: which slot, who follows, and back again."""

import contextlib
from dataclasses import dataclass, field

import httpx
import pytest

from tasks.errors import ServiceAway, VitrineError
from tasks.registry import Version
from tasks.release.promotion import blue_green
from tasks.release.promotion.blue_green import Plan, choose_slot, flip, refill_idle_slot, rollback, warm
from tasks.release.promotion.serving_replicas import Replica


@dataclass
class Aliases:
    """A registry's aliases and versions' tags, in memory; `dies_after` writes kill the promotion at that point."""

    held: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    dies_after: int = 10**9
    sets: int = 0

    def alias(self, model: str, alias: str) -> Version | None:
        version = self.held.get(alias)
        return Version(model, version, "run", self.tags.get(version, {}), (), "", 0) if version else None

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._write()
        self.held[alias] = version

    def tag_version(self, model: str, version: str, tag: str, value: str) -> None:
        self._write()
        self.tags.setdefault(version, {})[tag] = value

    def _write(self) -> None:
        if self.sets >= self.dies_after:
            raise KeyboardInterrupt
        self.sets += 1


class Following(Replica):
    """A replica that does what the aliases say at once, unless it is stuck or cannot load a version."""

    def __init__(self, aliases: Aliases, url: str = "http://a", broken: str = "", stuck: bool = False) -> None:
        super().__init__(url)  # the dataclass is frozen
        object.__setattr__(self, "parts", (aliases, broken, stuck))

    def poll_aliases(self, again: str = "") -> None:
        """It follows at once anyway."""

    def version(self) -> dict:
        aliases, broken, stuck = self.parts  # type: ignore[attr-defined]
        slots = {}
        for slot in ("blue", "green"):
            version = aliases.held.get(slot, "")
            failed = bool(version) and version == broken
            slots[slot] = {
                "version": "" if stuck else version,
                "state": "failed" if failed else "ready" if version else "empty",
                "reason": "checksum differs" if failed else "",
            }
        live = aliases.held.get("live")
        return {"live": {"version": live} if live and not stuck else None, "slots": slots}


def promote(aliases: Aliases, replicas: list[Replica], version: str) -> Plan:
    plan = choose_slot(aliases, version)
    warm(aliases, replicas, plan, 1)
    flip(aliases, replicas, plan, 1)
    return plan


def test_versions_alternate_between_the_slots() -> None:
    aliases = Aliases()
    replicas: list[Replica] = [Following(aliases)]
    assert promote(aliases, replicas, "1").slot == "blue"
    assert promote(aliases, replicas, "2").slot == "green"
    assert promote(aliases, replicas, "3").slot == "blue"
    assert aliases.held == {"blue": "3", "green": "2", "live": "3", "previous": "2"}


def test_rolling_back_and_forth() -> None:
    aliases = Aliases()
    replicas: list[Replica] = [Following(aliases)]
    with pytest.raises(VitrineError, match="no previous version"):
        rollback(aliases, replicas, 1, 1)
    promote(aliases, replicas, "1")
    promote(aliases, replicas, "2")
    plan, _ = rollback(aliases, replicas, 1, 1)
    assert (plan.version, aliases.held["live"], aliases.held["previous"]) == ("1", "1", "2")


def test_a_version_that_a_replica_cannot_load_never_goes_live_and_the_replica_is_named() -> None:
    aliases = Aliases()
    promote(aliases, [Following(aliases)], "1")
    replicas: list[Replica] = [Following(aliases), Following(aliases, "http://b", broken="2")]
    with pytest.raises(VitrineError, match="http://b: failed: checksum differs"):
        promote(aliases, replicas, "2")
    assert aliases.held["live"] == "1"


def test_a_straggler_is_named() -> None:
    aliases = Aliases()
    replicas: list[Replica] = [Following(aliases), Following(aliases, "http://slow", stuck=True)]
    with pytest.raises(VitrineError, match="1 of 2 replicas did not follow within 0 s: http://slow: blue holds version none"):
        warm(aliases, replicas, choose_slot(aliases, "1"), 0)


class Dead(Following):
    """A replica that answers as often as `answers` says, and then no more."""

    def __init__(self, aliases: Aliases, url: str, answers: int = 0) -> None:
        super().__init__(aliases, url)
        object.__setattr__(self, "left", [None] * answers)

    def version(self) -> dict:
        left: list[None] = self.left  # type: ignore[attr-defined]
        if not left:
            raise httpx.ConnectError("refused")
        left.pop()
        return super().version()


@pytest.mark.parametrize("answers", [0, 1])
def test_a_replica_that_is_dead_keeps_no_other_on_a_version_that_has_to_go(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as soon as the others have followed, long before the limits end; dead before the rollback or during it."""
    aliases = Aliases()
    for version in ("1", "2", "3"):
        promote(aliases, [Following(aliases)], version)
    monkeypatch.setattr(blue_green, "SILENT_S", 0.0)
    hours = 10 * 3600.0
    named = "version 1 is live: 1 of 2 replicas did not follow within 0 s: http://dead: no answer"
    with pytest.raises(ServiceAway, match=named):
        rollback(aliases, [Following(aliases), Dead(aliases, "http://dead", answers)], hours, hours, to="1")
    assert aliases.held["live"] == "1"


def test_a_rollback_of_which_no_replica_knows_moves_live_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back then does not come back with the version that has to go."""
    aliases = Aliases()
    for version in ("1", "2"):
        promote(aliases, [Following(aliases)], version)
    monkeypatch.setattr(blue_green, "SILENT_S", 0.0)
    with pytest.raises(ServiceAway, match="version 1 is live: 1 of 1 replicas did not follow"):
        rollback(aliases, [Dead(aliases, "http://dead")], 3600, 3600)
    assert (aliases.held["live"], aliases.held["previous"]) == ("1", "2")


def test_a_rollback_to_a_version_that_a_replica_cannot_load_moves_nothing() -> None:
    aliases = Aliases()
    for version in ("1", "2", "3"):
        promote(aliases, [Following(aliases)], version)
    replicas: list[Replica] = [Following(aliases), Following(aliases, "http://b", broken="1")]
    with pytest.raises(
        ServiceAway, match="loading version 1 into green: 1 of 2 replicas did not follow within 0 s: http://b: failed"
    ):
        rollback(aliases, replicas, 3600, 3600, to="1")
    assert aliases.held["live"] == "3"


@pytest.mark.parametrize("steps", range(5))
def test_a_promotion_killed_anywhere_is_finished_by_the_next_run(steps: int) -> None:
    aliases = killed_in_the_third(steps)
    promote(aliases, [Following(aliases)], "3")
    assert (aliases.held["live"], aliases.held["blue"], aliases.held["previous"]) == ("3", "3", "2")


@pytest.mark.parametrize("steps", range(5))
def test_a_promotion_killed_anywhere_is_undone_where_the_next_run_does_not_go_on(steps: int) -> None:
    aliases = killed_in_the_third(steps)
    refill_idle_slot(aliases, [Following(aliases)])
    live, previous = ("3", "2") if steps >= 3 else ("2", "1")
    assert (aliases.held["live"], aliases.held["previous"]) == (live, previous)
    assert {aliases.held["blue"], aliases.held["green"]} == {live, previous}
    assert refill_idle_slot(aliases, [Following(aliases)]) == ""


@pytest.mark.parametrize("steps", range(5))
def test_rolling_back_is_possible_wherever_a_promotion_was_killed(steps: int) -> None:
    aliases = killed_in_the_third(steps)
    plan, _ = rollback(aliases, [Following(aliases)], 1, 1)
    assert aliases.held["live"] == plan.version == ("2" if steps >= 3 else "1")


@pytest.mark.parametrize("steps", range(4))
def test_a_killed_rollback_is_finished_when_its_version_is_named(steps: int) -> None:
    aliases = Aliases()
    for version in ("1", "2"):
        promote(aliases, [Following(aliases)], version)
    aliases.dies_after = aliases.sets + steps
    with contextlib.suppress(KeyboardInterrupt):
        rollback(aliases, [Following(aliases)], 1, 1, to="1")
    aliases.dies_after = 10**9
    for _ in range(2):  # a second press of the button changes nothing
        rollback(aliases, [Following(aliases)], 1, 1, to="1")
        refill_idle_slot(aliases, [Following(aliases)])
        assert (aliases.held["live"], aliases.held["previous"]) == ("1", "2")


def killed_in_the_third(steps: int) -> Aliases:
    """Versions 1 and 2 went live, and the promotion of 3 was killed after this many writes (slot, tag, live, previous)."""
    aliases = Aliases()
    for version in ("1", "2"):
        promote(aliases, [Following(aliases)], version)
    aliases.dies_after = aliases.sets + steps
    with contextlib.suppress(KeyboardInterrupt):
        promote(aliases, [Following(aliases)], "3")
    aliases.dies_after = 10**9
    return aliases


def test_a_version_that_failed_while_it_was_live_is_only_gone_back_to_by_name() -> None:
    aliases = Aliases()
    for version in ("1", "2"):
        promote(aliases, [Following(aliases)], version)
    rollback(aliases, [Following(aliases)], 1, 1)
    aliases.tags["2"]["verdict"] = "failed: after it went live, 5 of 20 searches failed"
    with pytest.raises(VitrineError, match="the previous version 2 failed: after it went live, 5 of 20"):
        rollback(aliases, [Following(aliases)], 1, 1)
    rollback(aliases, [Following(aliases)], 1, 1, to="2")
    assert aliases.held["live"] == "2"


def test_a_live_alias_without_its_slot_is_refused() -> None:
    with pytest.raises(VitrineError, match="neither blue nor green"):
        choose_slot(Aliases({"live": "5"}), "6")
