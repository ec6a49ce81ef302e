"""Blue-green: which slot takes a version, when every replica holds it, and the flip of `live`.

The aliases in MLflow are the only state: a promotion that is killed at any point is finished by running it again.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from tasks.errors import VitrineError
from tasks.registry import INDEX_MODEL, Version
from tasks.release.replicas import Replica, wait_for

SLOTS = ("blue", "green")


class Aliases(Protocol):
    """The part of the registry that a promotion needs."""

    def alias(self, model: str, alias: str) -> Version | None: ...
    def set_alias(self, model: str, alias: str, version: str) -> None: ...


@dataclass(frozen=True)
class Plan:
    """Which version goes to which slot; `live` is the version that serves now ("" when none does)."""

    version: str
    slot: str
    live: str
    live_slot: str


def choose_slot(registry: Aliases, version: str) -> Plan:
    """The slot for a version: the one that holds it already, else the one that is not live."""
    live = registry.alias(INDEX_MODEL, "live")
    held = {slot: found.version for slot in SLOTS if (found := registry.alias(INDEX_MODEL, slot)) is not None}
    live_version = live.version if live else ""
    live_slot = next((slot for slot in SLOTS if live_version and held.get(slot) == live_version), "")
    if live_version and not live_slot:
        raise VitrineError(
            f"{INDEX_MODEL}: live names version {live_version}, which neither blue nor green holds; set one of them"
        )
    slot = next((s for s in SLOTS if held.get(s) == version), None) or next(s for s in SLOTS if s != live_slot)
    return Plan(version, slot, live_version, live_slot)


def warm(registry: Aliases, replicas: list[Replica], plan: Plan, limit_s: float) -> float:
    """Points the slot at the version and waits until every replica reports it ready; the seconds it took."""
    registry.set_alias(INDEX_MODEL, plan.slot, plan.version)
    return wait_for(replicas, f"loading version {plan.version} into {plan.slot}", lambda s: _not_ready(s, plan), limit_s)


def flip(registry: Aliases, replicas: list[Replica], plan: Plan, limit_s: float) -> float:
    """Moves `live` (and first `previous`), waits until every replica serves it; the seconds it took."""
    if plan.live and plan.live != plan.version:
        registry.set_alias(INDEX_MODEL, "previous", plan.live)
    registry.set_alias(INDEX_MODEL, "live", plan.version)
    return wait_for(replicas, f"serving version {plan.version}", lambda s: _not_live(s, plan.version), limit_s)


def rollback(registry: Aliases, replicas: list[Replica], limit_s: float) -> tuple[Plan, float]:
    """Goes back to `previous`: warm where its slot was taken meanwhile, at once where it is still loaded."""
    previous = registry.alias(INDEX_MODEL, "previous")
    if previous is None:
        raise VitrineError(f"{INDEX_MODEL} has no previous version to go back to")
    plan = choose_slot(registry, previous.version)
    if plan.live == plan.version:
        raise VitrineError(f"version {plan.version} is live and previous at once: there is nothing to go back to")
    took = warm(registry, replicas, plan, limit_s)
    return plan, took + flip(registry, replicas, plan, limit_s)


def _not_ready(state: dict[str, Any], plan: Plan) -> str:
    slot = state["slots"][plan.slot]
    if slot["version"] != plan.version:
        return f"{plan.slot} holds version {slot['version'] or 'none'}"
    if slot["state"] == "failed":
        return f"failed: {slot['reason']}"
    return "" if slot["state"] == "ready" else f"{plan.slot} is {slot['state']}"


def _not_live(state: dict[str, Any], version: str) -> str:
    live = state["live"]["version"] if state.get("live") else "none"
    return "" if live == version else f"still serves version {live}"
