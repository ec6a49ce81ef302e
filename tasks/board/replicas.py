"""State of every replica, and which replicas lag behind `live`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from serving.contract.manifest import SLOTS
from tasks.release.promotion.serving_replicas import Replica


@dataclass(frozen=True)
class SlotLine:
    """One slot of one replica. `state` is empty, loading, ready or failed; `reason` says why it failed."""

    name: str
    version: str
    state: str
    reason: str
    since: str
    products: int
    live: bool


@dataclass(frozen=True)
class ReplicaLine:
    """One replica: the version it serves ("" for none) and its slots. `problem` is one sentence, "" when healthy."""

    url: str
    answers: bool
    live: str
    problem: str
    slots: tuple[SlotLine, ...]


def fetch_states(replicas: Sequence[Replica]) -> list[tuple[str, dict[str, Any] | str]]:
    """Every replica's /v1/version, fetched concurrently; an error sentence for a replica that does not respond."""

    def one(replica: Replica) -> tuple[str, dict[str, Any] | str]:
        try:
            return replica.url, replica.version()
        except (httpx.HTTPError, ValueError) as error:
            return replica.url, f"no answer ({type(error).__name__})"

    if not replicas:
        return []
    with ThreadPoolExecutor(min(len(replicas), 32)) as pool:
        return list(pool.map(one, replicas))


def replica_lines(states: Sequence[tuple[str, dict[str, Any] | str]], live: str) -> list[ReplicaLine]:
    """One line per replica; `live` is the version all of them should serve ("" when nothing is live yet)."""
    return [_line(url, state, live) for url, state in states]


def _line(url: str, state: dict[str, Any] | str, live: str) -> ReplicaLine:
    if isinstance(state, str):
        return ReplicaLine(url, False, "", state, ())
    serves = state["live"]["version"] if state.get("live") else ""
    live_slot = state["live"]["slot"] if state.get("live") else ""
    slots = tuple(
        SlotLine(
            name, s.get("version", ""), s.get("state", "empty"), s.get("reason", ""), s.get("since", ""), int(s.get("products", 0)),
            name == live_slot,
        )
        for name in SLOTS
        if (s := state.get("slots", {}).get(name)) is not None
    )  # fmt: skip
    return ReplicaLine(url, True, serves, _problem(state, serves, live, slots), slots)


def _problem(state: dict[str, Any], serves: str, live: str, slots: Sequence[SlotLine]) -> str:
    if live and serves != live:
        return f"serves {'version ' + serves if serves else 'nothing'}, live is version {live}"
    broken = next((s for s in slots if s.state == "failed"), None)
    if broken is not None:
        return f"{broken.name} could not load version {broken.version}: {broken.reason}"
    return str(state.get("error", ""))
