"""The serving replicas that a promotion talks to, over their HTTP interface."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tasks.errors import VitrineError

POLL_S = 0.5


@dataclass(frozen=True)
class Replica:
    """One serving process by its base url. `token` opens its admin routes."""

    url: str
    token: str = ""

    def version(self) -> dict[str, Any]:
        """What the replica says of its slots (GET /v1/version). Raises httpx.HTTPError when it does not answer."""
        return httpx.get(f"{self.url}/v1/version", timeout=5, trust_env=False).raise_for_status().json()

    def search(self, slot: str, vector: list[float], k: int = 20) -> list[str]:
        """Product ids that one slot gives for a query vector."""
        answer = httpx.post(
            f"{self.url}/v1/search", params={"slot": slot}, json={"vector": vector, "k": k}, timeout=30, trust_env=False,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
        )  # fmt: skip
        return [r["product_id"] for r in answer.raise_for_status().json()["results"]]


def wait_for(
    replicas: Sequence[Replica], what: str, holds: Callable[[dict[str, Any]], str], limit_s: float, poll_s: float = POLL_S
) -> float:
    """Waits until `holds` gives "" for every replica's state; gives the seconds it took.

    `holds` answers why a state is not there yet; an answer that starts with "failed" ends the wait at once.
    Raises VitrineError naming every straggler with its reason.
    """
    began = time.monotonic()
    while True:
        reasons = {r.url: _reason(r, holds) for r in replicas}
        waiting = {url: why for url, why in reasons.items() if why}
        if not waiting:
            return time.monotonic() - began
        late = time.monotonic() - began > limit_s
        if late or any(why.startswith("failed") for why in waiting.values()):
            named = "; ".join(f"{url}: {why}" for url, why in waiting.items())
            raise VitrineError(
                f"{what}: {len(waiting)} of {len(replicas)} replicas did not follow within {limit_s:.0f} s: {named}"
            )
        time.sleep(poll_s)


def _reason(replica: Replica, holds: Callable[[dict[str, Any]], str]) -> str:
    try:
        return holds(replica.version())
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"
