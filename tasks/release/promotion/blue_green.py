"""Blue-green deployment: slot choice, warming, the flip of `live`, and rollback.

The aliases in MLflow are the state, and the flip is one write. What a version replaced is written on it before it goes live, so
that `previous` can always be told from what is live: a promotion that was killed at any point is finished by running it again,
or undone by `refill_idle_slot`.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from serving.contract.manifest import SLOTS
from tasks.errors import VitrineError
from tasks.registry import INDEX_MODEL, Version
from tasks.release.promotion.lease import Lease
from tasks.release.promotion.serving_replicas import (
    NO_ANSWER,
    SILENT_S,
    Replica,
    answering,
    not_followed,
    poll_aliases,
    stragglers,
    wait_for,
)

REPLACED = "replaced"
"""The tag of a version that names what was live before it."""
LIVE_AT = "live_at"
"""The tag that says when (epoch seconds) a version first went live: what freshness is measured to."""


class Aliases(Protocol):
    """The registry operations that a promotion uses."""

    def alias(self, model: str, alias: str) -> Version | None: ...
    def set_alias(self, model: str, alias: str, version: str) -> None: ...
    def tag_version(self, model: str, version: str, tag: str, value: str) -> None: ...


class LeasedAliases:
    """Aliases whose writes check the lease first; reads do not."""

    def __init__(self, registry: Aliases, lease: Lease) -> None:
        self.registry, self.lease = registry, lease

    def alias(self, model: str, alias: str) -> Version | None:
        return self.registry.alias(model, alias)

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.lease.check()
        self.registry.set_alias(model, alias, version)

    def tag_version(self, model: str, version: str, tag: str, value: str) -> None:
        self.lease.check()
        self.registry.tag_version(model, version, tag, value)


@dataclass(frozen=True)
class Plan:
    """A version and its slot; `live` is the version served now ("" for none), `held` the slot's current version."""

    version: str
    slot: str
    live: str
    live_slot: str
    held: str = ""


def choose_slot(registry: Aliases, version: str) -> Plan:
    """The slot for a version: the one that holds it, else the one that is not live."""
    live = registry.alias(INDEX_MODEL, "live")
    held = {slot: found.version for slot in SLOTS if (found := registry.alias(INDEX_MODEL, slot)) is not None}
    live_version = live.version if live else ""
    live_slot = next((slot for slot in SLOTS if live_version and held.get(slot) == live_version), "")
    if live_version and not live_slot:
        raise VitrineError(
            f"{INDEX_MODEL}: live names version {live_version}, which neither blue nor green holds; set one of them"
        )
    slot = next((s for s in SLOTS if held.get(s) == version), None) or next(s for s in SLOTS if s != live_slot)
    return Plan(version, slot, live_version, live_slot, held.get(slot, ""))


def warm(registry: Aliases, replicas: list[Replica], plan: Plan, limit_s: float) -> float:
    """Assigns the version to the slot and waits until every replica reports it ready; returns seconds since the first write.

    Replicas that failed to load it before are asked to try again.
    """
    began = time.monotonic()
    _assign(registry, replicas, plan)
    wait_for(replicas, _loading(plan), lambda s: _not_ready(s, plan), limit_s)
    return time.monotonic() - began


def warm_for_rollback(registry: Aliases, replicas: list[Replica], plan: Plan, limit_s: float) -> float:
    """As `warm`, for the replicas that answer: one that does not, or no longer, keeps no other on a version that has to go."""
    began = time.monotonic()
    there = answering(replicas)
    _assign(registry, there, plan)
    took, late = stragglers(there, lambda s: _not_ready(s, plan), limit_s, SILENT_S)
    hindering = {url: why for url, why in late.items() if not why.startswith(NO_ANSWER)}
    if hindering:
        raise not_followed(_loading(plan), there, took, hindering)
    return time.monotonic() - began


def _assign(registry: Aliases, replicas: list[Replica], plan: Plan) -> None:
    if plan.held != plan.version:
        registry.set_alias(INDEX_MODEL, plan.slot, plan.version)
    poll_aliases(replicas, again=plan.version)


def _loading(plan: Plan) -> str:
    return f"loading version {plan.version} into {plan.slot}"


def flip(registry: Aliases, replicas: list[Replica], plan: Plan, limit_s: float, silent_s: float = math.inf) -> float:
    """Moves `live`, then `previous`, and waits until every replica serves it; returns seconds since the first write.

    Raises ServiceAway naming the replicas that did not follow, those that do not answer after `silent_s` seconds. `live` has moved
    then: the others serve it.
    """
    began = time.monotonic()
    if plan.live != plan.version:
        if plan.live:
            registry.tag_version(INDEX_MODEL, plan.version, REPLACED, plan.live)
        registry.set_alias(INDEX_MODEL, "live", plan.version)
        poll_aliases(replicas)
    settle_previous(registry)
    wait_for(replicas, f"version {plan.version} is live", lambda s: _not_live(s, plan.version), limit_s, silent_s)
    return time.monotonic() - began


def rollback(registry: Aliases, replicas: list[Replica], warm_s: float, flip_s: float, to: str = "") -> tuple[Plan, float]:
    """Moves `live` to the previous version (or `to`): immediately if a slot still holds it, else after loading it, at most `warm_s`.

    A replica that does not answer delays nothing: `live` moves, and then it is waited for SILENT_S, one that answers for `flip_s`.
    Raises VitrineError when there is no previous version, when it did not pass its gates or its bake (unless it is named), and
    ServiceAway naming stragglers: the others serve the version then.
    """
    target = to or _before_live(registry)
    plan = choose_slot(registry, target)
    if plan.live == plan.version:
        return plan, flip(registry, replicas, plan, flip_s, SILENT_S)
    took = warm_for_rollback(registry, replicas, plan, warm_s)
    took += flip(registry, replicas, plan, flip_s, SILENT_S)
    for _ in range(3):  # a promotion that this made void may have had one write on its way
        now = registry.alias(INDEX_MODEL, "live")
        if now is not None and now.version == target:
            break
        took += flip(registry, replicas, choose_slot(registry, target), flip_s, SILENT_S)
    return plan, took


def settle_previous(registry: Aliases) -> str:
    """Makes `previous` name the version that live replaced; returns it ("" for none)."""
    live, previous = registry.alias(INDEX_MODEL, "live"), registry.alias(INDEX_MODEL, "previous")
    replaced = live.tags.get(REPLACED, "") if live else ""
    if replaced and (previous is None or previous.version != replaced):
        registry.set_alias(INDEX_MODEL, "previous", replaced)
    return replaced


def refill_idle_slot(registry: Aliases, replicas: list[Replica]) -> str:
    """Cleans up the idle slot after a promotion: loads `previous` again, so that a rollback is fast.

    Gives one sentence about what was done, "" for nothing. What is live is never changed.
    """
    previous = settle_previous(registry)
    if not previous:
        return ""
    plan = choose_slot(registry, previous)
    if plan.held == previous or not plan.live:
        return ""
    registry.set_alias(INDEX_MODEL, plan.slot, previous)
    poll_aliases(replicas)
    return f"{plan.slot} holds version {previous} again instead of version {plan.held or 'none'}"


def _before_live(registry: Aliases) -> str:
    replaced = settle_previous(registry)
    previous = registry.alias(INDEX_MODEL, "previous")
    live = registry.alias(INDEX_MODEL, "live")
    if previous is None:
        raise VitrineError(f"{INDEX_MODEL} has no previous version to go back to")
    if live is not None and previous.version == live.version:
        raise VitrineError(f"version {live.version} is live and previous at once: there is nothing to go back to")
    if previous.tags.get("verdict", "").startswith("failed"):
        raise VitrineError(
            f"the previous version {previous.version} {previous.tags['verdict']}; name the version to go to: vitrine release rollback --to"
        )
    return replaced or previous.version


def _not_ready(state: dict[str, Any], plan: Plan) -> str:
    slot = state["slots"][plan.slot]
    if slot["version"] != plan.version:
        return f"{plan.slot} holds version {slot['version'] or 'none'}"
    if slot["state"] == "failed":
        return f"failed: {slot['reason']}"
    if slot["state"] == "ready":
        return ""
    return f"{plan.slot} is {slot['state']}" + (f": {slot['reason']}" if slot.get("reason") else "")


def _not_live(state: dict[str, Any], version: str) -> str:
    live = state["live"]["version"] if state.get("live") else "none"
    return "" if live == version else f"still serves version {live}"
